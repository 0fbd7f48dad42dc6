#!/usr/bin/env bash
# Connected digits from the Free Spoken Digit Dataset: real recordings, each used once.
recipe=fsdd
usage='Downloads the Free Spoken Digit Dataset (or takes --corpus), trains an ensemble, distils it into one net and
scores both on connected digits.
Options of this recipe:
  --holdout-speaker NAME  test on this speaker, unseen in training (default: test on held-out recordings)
  --any-version true      take recordings that are not those of the public corpus'
holdout_speaker=
any_version=false
own_options="holdout_speaker any_version"
clean_suffix=
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"

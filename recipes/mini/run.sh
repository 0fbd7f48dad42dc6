#!/usr/bin/env bash
# Digits and natural numbers spoken by espeak-ng: the embedded default corpus, smoke test and oracle.
recipe=mini
usage='Makes a corpus with espeak-ng (GPLv3), trains an ensemble, distils it into one net and scores both.
Options of this recipe:
  --hours-train H     hours of training speech (default 0.45)
  --hours-dev H       hours of dev speech (default 0.08, in preset full 0.25)
  --hours-test H      hours of test speech (default 0.15, in preset full 2: enough to tell words apart)
  --hours-unlabelled H  of speech without text by the voices of training, for students alone (default 0,
                      in preset full 5.4, twelve times the default of --hours-train)'
hours_train=0.45
hours_dev=
hours_test=
hours_unlabelled=
own_options="hours_train hours_dev hours_test hours_unlabelled"
clean_suffix=_clean # alignments are made on the clean audio and reused for its noisy copy
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"

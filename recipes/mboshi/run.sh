#!/usr/bin/env bash
# Continuous speech in an under-resourced language: Mboshi, 4.5 hours of three speakers.
recipe=mboshi
usage='Downloads the Mboshi corpus (or takes --corpus: the repository, its full_corpus_newsplit, or a part; wav or flac),
trains an ensemble, distils it into one net and scores both on the official dev set.
Options of this recipe:
  --unlabelled-share S  of all sentences but those of test, dev included, is speech without text, for students alone
                        (default 0)
  --any-version true    take recordings that are not those of the public corpus'
unlabelled_share=0
any_version=false
own_options="unlabelled_share any_version"
clean_suffix=
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"

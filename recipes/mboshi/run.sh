#!/usr/bin/env bash
# Continuous speech in an under-resourced language: Mboshi, 4.5 hours of three speakers.
recipe=mboshi
usage='Downloads the Mboshi corpus (or takes --corpus: the repository, its full_corpus_newsplit, or a part; wav or flac),
trains an ensemble, distils it into one net and scores both on the official dev set.'
own_options=
clean_suffix=
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"

#!/usr/bin/env bash
# LibriSpeech: read English, thousands of words. mini_librispeech unless other subsets are named.
recipe=librispeech
usage='Downloads mini_librispeech, or other subsets of LibriSpeech (or takes --corpus), trains an ensemble, distils it
into one net and scores both. mini_librispeech holds out only dev-clean-2: half of its speakers are dev, the others test.
Options of this recipe:
  --train-subsets L   train-clean-5, or of LibriSpeech, with commas: train-clean-100,train-clean-360,train-other-500
  --dev-subsets L     dev-clean-2, or dev-clean,dev-other
  --test-subsets L    dev-clean-2, or test-clean,test-other
  --lm NAME|FILE      an ARPA file, or a public one by its name: 3-gram.pruned.3e-7.arpa.gz, 3-gram.pruned.1e-7.arpa.gz,
                      3-gram.arpa.gz, 4-gram.arpa.gz (default: estimated from the training transcripts)
  --lexicon FILE      a lexicon.txt in place of the CMU dictionary
  --stress BOOL       true: a vowel without stress and with it are phones of their own (default false)'
train_subsets=train-clean-5
dev_subsets=dev-clean-2
test_subsets=dev-clean-2
lm=
lexicon=
stress=false
own_options="train_subsets dev_subsets test_subsets lm lexicon stress"
clean_suffix=
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"

"""What the GMM sees: MFCC, mean-normalised per utterance or speaker, with first and second derivatives."""

from pathlib import Path

import numpy as np

from asr_kd.choices import GmmCmvn, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import mean_and_istd, pool
from asr_kd.features.deltas import add_deltas
from asr_kd.store.feats import FeatsReader

# Kaldi derives over 2 frames on either side; 1 blurs boundaries less (91.5 % within 20 ms instead of 90.1 % on espeak).
DELTA_WINDOW = 1


class GmmFeats:
    """`feats[utt_id]`: (num_frames, 3 × feat_dim) float32 of one utterance of mfcc.h5, ready for the GMM.

    cmvn: whose mean is subtracted, of the utterance or of all utterances of its speaker in the file.
    norm_vars: also divide by the deviation. Raises AsrKdError for filterbanks and for an unknown unit.
    """

    def __init__(self, mfcc_h5: str | Path, cmvn: GmmCmvn = "utterance", norm_vars: bool = True) -> None:
        require_choice("gmm_cmvn", cmvn, GmmCmvn)
        self.reader = FeatsReader(mfcc_h5)
        if self.reader.attrs["kind"] != "mfcc":
            raise AsrKdError(f"{mfcc_h5}: holds {self.reader.attrs['kind']}, but the GMM needs mfcc")
        self.cmvn, self.norm_vars = cmvn, norm_vars
        self._stats = self.reader.cmvn_stats
        if cmvn == "speaker":
            total = pool(self._stats, self.reader.spk_ids)
            self._stats = np.array([total[spk_id] for spk_id in self.reader.spk_ids])

    @property
    def options_json(self) -> str:
        """The options of the MFCC; a model and what it aligns must agree in them."""
        return str(self.reader.attrs["options"])

    def __getitem__(self, utt_id: str) -> np.ndarray:
        feats = self.reader[utt_id]
        self.reader.require_intact(self.reader.layout.index[utt_id], feats)
        if len(feats) == 0:
            return np.zeros((0, 3 * self.reader.feat_dim), dtype=np.float32)
        mean, istd = mean_and_istd(self._stats[self.reader.layout.index[utt_id]], self.norm_vars)
        return add_deltas((feats - mean) * istd, window=DELTA_WINDOW)

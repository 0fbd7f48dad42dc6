"""asr_kd: distil an ensemble of acoustic models into one net of the same size."""

__version__ = "0.20.0"

"""The one door to Kaldi's C++ wheels, so that everything else imports without them."""

import importlib
import importlib.metadata
from functools import cache
from types import SimpleNamespace

from asr_kd.errors import AsrKdError, install_hint

# These two belong together: kaldifst 1.8 beside this khg hangs at import or rejects every FST.
PINNED = {"kaldi-hmm-gmm": "1.1.4", "kaldifst": "1.7.17"}


@cache
def kaldi() -> SimpleNamespace:
    """The wheels as `.khg` and `.fst` (kaldifst).

    Versions are compared before anything is imported, because the import of a wrong pair can hang.
    Raises AsrKdError that names the extra to install when a wheel is missing or of another version.
    """
    for package, wanted in PINNED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise AsrKdError(f"this step needs {package}=={wanted}; {install_hint('hmm')}") from None
        if found != wanted:
            raise AsrKdError(
                f"{package} is at {found} but {wanted} is needed (other versions hang); {install_hint('hmm')}"
            )
    try:
        # In this order: khg first registers the FST types that kaldifst looks up.
        khg = importlib.import_module("kaldi_hmm_gmm")
        fst = importlib.import_module("kaldifst")
    except ImportError as error:
        raise AsrKdError(f"the Kaldi wheels cannot be imported ({error}); {install_hint('hmm')}") from error
    return SimpleNamespace(khg=khg, fst=fst)

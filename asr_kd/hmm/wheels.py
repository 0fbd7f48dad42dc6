"""The one door to Kaldi's C++ wheels, so that everything else imports without them."""

import importlib
import importlib.metadata
from functools import cache
from types import SimpleNamespace

from asr_kd.errors import AsrKdError

# These three belong together: kaldifst 1.8 or kaldi-decoder 0.3 beside this khg hangs at import or rejects every FST.
PINNED = {"kaldi-hmm-gmm": "1.1.4", "kaldifst": "1.7.17", "kaldi-decoder": "0.2.11"}


@cache
def kaldi() -> SimpleNamespace:
    """The wheels as `.khg`, `.fst` (kaldifst) and `.decoder` (kaldi_decoder).

    Versions are compared before anything is imported, because the import of a wrong pair can hang.
    Raises AsrKdError that names the extra to install when a wheel is missing or of another version.
    """
    for package, wanted in PINNED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise AsrKdError(f"this step needs {package}=={wanted}; run: pip install 'asr_kd[hmm]'") from None
        if found != wanted:
            raise AsrKdError(
                f"{package} is at {found} but {wanted} is needed (other versions hang); run: pip install 'asr_kd[hmm]'"
            )
    try:
        # In this order: khg first registers the FST types that the other two look up.
        khg = importlib.import_module("kaldi_hmm_gmm")
        fst = importlib.import_module("kaldifst")
        decoder = importlib.import_module("kaldi_decoder")
    except ImportError as error:
        raise AsrKdError(f"the Kaldi wheels cannot be imported ({error}); run: pip install 'asr_kd[hmm]'") from error
    # The C++ iterator, since the wheel's own of this version knows no lattices.
    lattice_arcs = importlib.import_module("_kaldifst")._ArcIteratorLattice
    return SimpleNamespace(khg=khg, fst=fst, decoder=decoder, lattice_arcs=lattice_arcs)


def arcs(fst: object, state: int) -> list:
    """The arcs that leave `state` of a kaldifst StdVectorFst or Lattice, as a list of arc objects."""
    k = kaldi()
    if isinstance(fst, k.fst.Lattice):
        # kaldifst.ArcIterator of the pinned version knows no lattices.
        iterator = k.lattice_arcs(fst, state)
    else:
        iterator = k.fst.ArcIterator(fst, state)
    found = []
    while not iterator.done:
        found.append(iterator.value)
        iterator.next()
    return found

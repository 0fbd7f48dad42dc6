"""Speech with known phone times from espeak-ng, through the shared library in the wheel `espeakng_loader`.

espeak keeps static state (counters of its flutter, glottal and noise sources) that its own re-initialisation does not
reset, so the samples of an utterance depend on everything that the process said before. Use one `Espeak` in one fresh
process for a fixed sequence of utterances wherever a result must be reproducible.
"""

import ctypes
import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError, install_hint

# espeak-ng/speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS, _INITIALIZE_DONT_EXIT = 0x0001, 0x8000
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4}
_POS_CHARACTER, _CHARS_UTF8 = 1, 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]  # noqa: RUF012


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """What espeak said: int16 samples, and events in their order.

    words: (first sample, first character in the text counted from 0) where a word begins, any closure or pause that
    its first phoneme needs included. phonemes: (index into `words` of the word it follows, or −1; first sample;
    espeak's name). Both mark beginnings; a stop's mark is its burst, the closure before it is digital silence.
    """

    samples: np.ndarray
    words: list[tuple[int, int]]
    phonemes: list[tuple[int, int, str]]


class Espeak:
    """The library, initialised; only one may exist in a process.

    sample_rate: of all voices, Hz. Raises AsrKdError where the wheel is absent or does not start.
    """

    def __init__(self, seed: int = 0):
        loader = _loader()
        self._library = ctypes.CDLL(loader.get_library_path())
        self.sample_rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS,
            0,
            loader.get_data_path().encode(),
            _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT,
        )
        if self.sample_rate <= 0:
            raise AsrKdError(f"espeak-ng could not be started from {loader.get_library_path()}")
        # Initialisation seeds both of espeak's sources of randomness, its own and the C library's, from the clock.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed % 2**31))
        ctypes.CDLL(None).srand(ctypes.c_uint(seed % 2**31))
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, str]] = []

    def speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> Speech:
        """Synthesise `text` (ASCII) with `voice` ("en-us+f1"), `rate` words a minute, pitch and range 0–100.

        Raises AsrKdError for a voice that espeak does not have, or that says nothing.
        """
        self._chunks, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise AsrKdError(f"espeak-ng has no voice {voice}")
        for name, value in (("rate", rate), ("pitch", pitch), ("pitch_range", pitch_range)):
            self._library.espeak_SetParameter(_PARAMETERS[name], value, 0)
        content = text.encode("ascii")
        failed = self._library.espeak_Synth(
            content, ctypes.c_size_t(len(content) + 1), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if failed or not self._chunks:
            raise AsrKdError(f"espeak-ng could not say “{text}” with the voice {voice}")
        words: list[tuple[int, int]] = []
        phonemes: list[tuple[int, int, str]] = []
        for kind, position, sample, name in self._events:
            if kind == _EVENT_WORD:
                words.append((sample, position - 1))
            else:
                phonemes.append((len(words) - 1, sample, name))
        return Speech(np.concatenate(self._chunks), words, phonemes)

    def _collect(self, samples, num_samples, events) -> int:
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type in (_EVENT_WORD, _EVENT_PHONEME):
                name = event.id.string.decode("utf-8") if event.type == _EVENT_PHONEME else ""
                self._events.append((event.type, event.text_position, event.sample, name))
            index += 1
        return 0


def voice_variants() -> list[str]:
    """Names of the variants that can stand for speakers, sorted.

    Left out: those that add an echo (rooms are simulated, with the phone times kept), the two that whisper, and names
    that cannot be an id.
    """
    names = []
    for path in sorted((Path(_loader().get_data_path()) / "voices" / "!v").iterdir()):
        settings = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        echo = any(fields[:1] == ["echo"] and any(int(value) for value in fields[1:3]) for fields in settings)
        if not echo and "whisper" not in path.name and path.name.isalnum():
            names.append(path.name)
    return names


def _loader():
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise AsrKdError(f"the mini corpus is spoken by espeak-ng: {install_hint('mini')}") from error

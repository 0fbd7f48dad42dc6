"""Windows for other people's trainers: the same from every way of reading them, in workers too."""

import inspect
import pickle
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Cmvn
from asr_kd.store import windows
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.windows import WindowDataset

CONTEXT = {"left_context": 4, "right_context": 2}


def test_every_frame_once_with_its_neighbours(toy):
    reader, ali = FeatsReader(toy["feats"]), AliReader(toy["ali"])
    dataset = WindowDataset(toy["feats"], toy["ali"], **CONTEXT)
    assert len(dataset) == reader.layout.num_frames
    expected = np.concatenate([reader.windows(utt_id, 4, 2) for utt_id in reader.layout.utt_ids])
    found = dataset.__getitems__(range(len(dataset)))
    np.testing.assert_array_equal(torch.stack([window for window, _ in found]), expected)
    np.testing.assert_array_equal(torch.stack([pdf for _, pdf in found]), ali.pdf)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_workers_read_what_one_process_reads(toy):
    """The parent has read, so that its file is open when the workers start."""
    dataset = WindowDataset(toy["feats"], toy["ali"], **CONTEXT)
    expected = [dataset[index] for index in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=64, num_workers=2, multiprocessing_context="fork")
    found = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    assert torch.equal(found[0], torch.stack([window for window, _ in expected]))
    assert torch.equal(found[1], torch.stack([pdf for _, pdf in expected]))
    window, pdf = dataset[5]
    assert torch.equal(window, expected[5][0])
    assert pdf == expected[5][1]


def test_a_pickled_dataset_reads_on(toy):
    """As a worker that is spawned, not forked, gets it."""
    dataset = WindowDataset(toy["feats"], toy["ali"])
    expected = dataset[3][0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3][0], expected)


@pytest.mark.parametrize("unit", ["global", "speaker", "utterance"])
def test_normalised_as_this_packages_own_training_does_it(toy, unit):
    reader = FeatsReader(toy["feats"])
    dataset = WindowDataset(toy["feats"], toy["ali"], left_context=0, right_context=0, cmvn=unit)
    expected = np.concatenate([block for _, block in Cmvn.from_training_set(unit, reader).normalised_blocks(reader)])
    found = torch.stack([dataset[index][0] for index in range(len(dataset))])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_statistics_of_the_training_set_for_a_dev_set(toy):
    stats = FeatsReader(toy["feats"]).cmvn_stats.sum(axis=0)
    own = WindowDataset(toy["dev_feats"], toy["dev_ali"], cmvn="global")[0][0]
    foreign = WindowDataset(toy["dev_feats"], toy["dev_ali"], cmvn="global", stats=stats)[0][0]
    assert not torch.equal(own, foreign)
    raw = WindowDataset(toy["dev_feats"], toy["dev_ali"])[0][0].numpy().reshape(26, -1)
    mean = stats[0, :-1] / stats[0, -1]
    std = np.sqrt(stats[1, :-1] / stats[0, -1] - mean**2)
    np.testing.assert_allclose(foreign.reshape(26, -1), (raw - mean) / std, rtol=1e-4, atol=1e-4)


def test_unlabelled_frames_are_left_out_and_misfits_refused(toy, tmp_path):
    layout = FeatsReader(toy["feats"]).layout
    pdf = AliReader(toy["ali"]).pdf.copy()
    pdf[layout.rows(layout.utt_ids[1])] = -1
    for name, labels in (("some.h5", pdf), ("none.h5", np.full_like(pdf, -1))):
        write_ali(tmp_path / name, layout, labels, num_pdfs=6, model_digest="toy", sil_pdfs=[])
    assert len(WindowDataset(toy["feats"], tmp_path / "some.h5")) == (pdf >= 0).sum()
    with pytest.raises(AsrKdError, match="no frame has a label"):
        WindowDataset(toy["feats"], tmp_path / "none.h5")
    with pytest.raises(AsrKdError, match="does not fit"):
        WindowDataset(toy["feats"], toy["dev_ali"])
    for options in ({"cmvn": "none", "stats": np.ones((2, 41))}, {"cmvn": "other"}, {"left_context": -1}):
        with pytest.raises(AsrKdError):
            WindowDataset(toy["feats"], toy["ali"], **options)


def test_the_h5py_example_of_the_documentation(toy):
    text = inspect.getdoc(windows)
    code = textwrap.dedent(text[text.index("    import h5py") : text.index("This package trains")])
    names: dict = {}
    exec(code, names)
    reader, ali = FeatsReader(toy["feats"]), AliReader(toy["ali"])
    utt_id = reader.layout.utt_ids[7]
    found, pdf = names["windows_of"](toy["feats"], toy["ali"], utt_id)
    np.testing.assert_array_equal(found, reader.windows(utt_id, 20, 5))
    np.testing.assert_array_equal(pdf, ali.pdf[ali.layout.rows(utt_id)])

"""Every graph for a GPU, as far as DALI takes it without one: nodes, devices, arguments."""

import itertools

import pytest

from mim3d.dataio.transforms.augment import AUGMENTATIONS
from mim3d.dataio.transforms.dali import DaliGraph
from mim3d.dataio.transforms.graph import GraphSpec

dali = pytest.importorskip("nvidia.dali")


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("device_input", [False, True], ids=["from host", "from device"])
def test_graphs_for_a_gpu_are_accepted(monkeypatch, name, device_input):
    pipeline = dali.Pipeline

    class OnNoDevice(pipeline):
        """Built for the GPU, but never put on one."""

        def __init__(self, **options) -> None:
            super().__init__(**{**options, "device_id": None})

        def build(self) -> None:
            pass

    monkeypatch.setattr(dali, "Pipeline", OnNoDevice)
    kind = AUGMENTATIONS[name]
    views = (1, 2) if kind.per_view else (1,)
    labels = (None,) if kind.per_view else (None, "uint8", "int16")
    for n_views, label, channels in itertools.product(views, labels, (1, 2)):
        spec = GraphSpec(2, channels, (32, 24, 16), n_views, label, kind, 0, 1, device_input)
        if device_input and not spec.parameters:
            with pytest.raises(ValueError, match="nothing is left for DALI"):
                DaliGraph(spec, lambda _i: [])
            continue
        graph = DaliGraph(spec, lambda _i: [])
        assert len(graph._pipeline.serialize()) > 100
        outputs = [node.device for node in graph._pipeline._graph_outputs]
        assert outputs == ["gpu"] * (n_views + (label is not None))
        sources = {op.name: op.outputs[0].device for op in graph._pipeline._ops if not op.inputs}
        assert list(sources.values()).count("gpu") == (1 + (label is not None)) * device_input

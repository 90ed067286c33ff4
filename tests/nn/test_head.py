"""The neck against its formula, and the classifier."""

import math

import pytest
import torch

from odc_lightning.nn import NonLinearNeck, linear_classifier


def by_hand(neck, pooled):
    """fc-bn-relu-fc-relu in float64, with the statistics of the batch; dropout is off."""
    state = {key: value.double() for key, value in neck.state_dict().items()}
    hidden = pooled.double() @ state["fc0.weight"].T + state["fc0.bias"]
    hidden = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0, unbiased=False) + 1e-5)
    if "bn0.weight" in state:
        hidden = hidden * state["bn0.weight"] + state["bn0.bias"]
    return (hidden.clamp(min=0) @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)


@pytest.mark.parametrize("bn_affine", [True, False])
def test_neck_is_fc_bn_relu_fc_relu(bn_affine):
    neck = NonLinearNeck(20, 16, 8, dropout=0.0, bn_affine=bn_affine).train()
    if bn_affine:
        torch.nn.init.normal_(neck.bn0.weight)
        torch.nn.init.normal_(neck.bn0.bias)
    pooled = torch.randn(12, 20)
    features = neck(pooled)
    torch.testing.assert_close(features, by_hand(neck, pooled).float())
    assert features.min() == 0


def test_dropout_stands_between_the_relu_and_fc1():
    neck = NonLinearNeck(4, 1000, 2, dropout=0.25).train()
    seen = []
    neck.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    neck.relu.register_forward_hook(lambda _, __, output: seen.append(output))
    neck(torch.randn(50, 4))
    before, after = seen[0], seen[1]
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept] / 0.75)
    assert (kept.sum() / (before != 0).sum()).item() == pytest.approx(0.75, abs=0.02)


def test_release_batch_norm():
    neck = NonLinearNeck(4, 8, 2, bn_momentum=0.001, bn_affine=False).train()
    hidden = []
    neck.bn0.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    neck(torch.randn(16, 4))
    torch.testing.assert_close(neck.bn0.running_mean, 0.001 * hidden[0].mean(0))
    assert list(neck.bn0.parameters()) == []


def test_sync_batch_norm_is_the_same_thing_in_one_process():
    plain, sync = NonLinearNeck(4, 8, 2, dropout=0), NonLinearNeck(4, 8, 2, dropout=0, bn_sync=True)
    sync.load_state_dict(plain.state_dict())
    pooled = torch.randn(16, 4)
    assert isinstance(sync.bn0, torch.nn.SyncBatchNorm)
    torch.testing.assert_close(sync(pooled), plain(pooled))


def test_initialisation_and_names():
    neck = NonLinearNeck(300, 400, 200)
    assert neck.fc0.weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert neck.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert not neck.fc0.bias.any()
    assert not neck.fc1.bias.any()
    assert {key.split(".")[0] for key in neck.state_dict()} == {"fc0", "bn0", "fc1"}
    head = linear_classifier(200, 500)
    assert head.weight.shape == (500, 200)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


@pytest.mark.parametrize(
    ("key", "value"),
    [("in_dim", 0), ("hidden_dim", 0), ("feature_dim", -1), ("dropout", 1.0), ("dropout", -0.1), ("bn_momentum", 0.0)],
)
def test_wrong_arguments_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key} must be .* Received: {value}"):
        NonLinearNeck(**{"in_dim": 4, key: value})


def test_classifier_needs_a_cluster():
    with pytest.raises(ValueError, match=r"num_clusters must be at least 1. Received: 0"):
        linear_classifier(4, 0)

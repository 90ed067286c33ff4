from odc_lightning.nested import leaves


def test_leaves_by_dotted_key():
    tree = {"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "seed": 0, "none": {}, 1: {"a": None}}
    assert dict(leaves(tree)) == {"optim.lr": 0.1, "optim.betas": [0.9, 0.99], "seed": 0, "1.a": None}

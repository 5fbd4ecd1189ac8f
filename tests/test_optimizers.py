"""LaProp and adaptive clipping against ten lines of numpy."""

import copy

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.optimizers import LaProp, clip_grad_agc_


def test_laprop_against_numpy():
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((4, 3), (5,), ())]
    params = [th.nn.Parameter(th.tensor(p)) for p in start]
    optimizer = LaProp(params, lr=0.0, betas=(0.8, 0.95), eps=1e-12)
    ours = [p.copy() for p in start]
    squares, momentum = [np.zeros_like(p) for p in start], [np.zeros_like(p) for p in start]
    for t, lr in enumerate([0.0, 0.1, 0.1, 0.01, 0.5], start=1):
        grads = [rng.normal(size=p.shape) for p in start]
        for p, g in zip(params, grads, strict=True):
            p.grad = th.tensor(g)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for i, g in enumerate(grads):
            squares[i] = 0.95 * squares[i] + 0.05 * g**2
            momentum[i] = 0.8 * momentum[i] + 0.2 * g / (np.sqrt(squares[i] / (1 - 0.95**t)) + 1e-12)
            ours[i] = ours[i] - lr * momentum[i] / (1 - 0.8**t)
        for p, expected in zip(params, ours, strict=True):
            np.testing.assert_allclose(p.detach(), expected, rtol=1e-12)


def test_zero_gradient_does_not_move():
    p = th.nn.Parameter(th.ones(3))
    optimizer = LaProp([p], lr=1.0)
    for _ in range(3):
        p.grad = th.zeros(3)
        optimizer.step()
    assert th.equal(p, th.ones(3))


def test_state_survives_saving():
    def run(optimizer, param, n):
        for i in range(n):
            param.grad = th.full((2,), 1.0 + i)
            optimizer.step()

    a, b = (th.nn.Parameter(th.ones(2)) for _ in range(2))
    first, second = LaProp([a], lr=0.1), LaProp([b], lr=0.5)
    run(first, a, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    b.data.copy_(a.data)
    run(first, a, 2)
    run(second, b, 2)
    assert th.equal(a, b) and second.param_groups[0]["lr"] == 0.1 and second.param_groups[0]["step"] == 5


def test_closure_and_missing_gradients():
    p, unused = th.nn.Parameter(th.ones(1)), th.nn.Parameter(th.ones(1))
    optimizer = LaProp([p, unused], lr=0.1)
    optimizer.step()  # no gradient anywhere: nothing happens

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert p.item() == pytest.approx(0.9) and unused.item() == 1.0


@pytest.mark.parametrize(("kwargs", "name"), [(dict(lr=-1), "lr"), (dict(eps=0.0), "eps"), (dict(betas=(1.0, 0.5)), "betas")])
def test_bad_settings(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        LaProp([th.nn.Parameter(th.ones(1))], **kwargs)


def test_agc_clips_each_tensor_to_its_own_norm():
    params = [th.nn.Parameter(p) for p in (th.full((4,), 2.0), th.zeros(4), th.full((4,), 2.0))]
    grads = [th.full((4,), 10.0), th.full((4,), 1.0), th.full((4,), 0.1)]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    norms, is_clipped = clip_grad_agc_([*params, th.nn.Parameter(th.ones(1))], 0.3)
    assert norms.tolist() == pytest.approx([20.0, 2.0, 0.2]) and is_clipped.tolist() == [True, True, False]
    assert params[0].grad.norm().item() == pytest.approx(0.3 * 4.0)  # to 0.3 times the parameter's norm
    assert params[1].grad.norm().item() == pytest.approx(0.3 * 1e-3)  # a zero parameter counts as 1e-3 long
    assert th.equal(params[2].grad, grads[2])  # short enough


@pytest.mark.parametrize("is_capturable", [False, True])
def test_step_norms_are_the_changes_of_the_parameters(is_capturable):
    """With a learning rate of its own for each group; a parameter without gradient is left out."""
    first, second, unused = (th.nn.Parameter(th.randn(3, 2)) for _ in range(3))
    optimizer = LaProp([dict(params=[first, unused], lr=0.1), dict(params=[second], lr=0.01)])
    if is_capturable:
        optimizer.make_capturable()
    for _ in range(3):
        before = [p.detach().clone() for p in (first, second)]
        for p in (first, second):
            p.grad = th.randn(3, 2)
        optimizer.step()
        changes = [(p.detach() - old).norm().item() for p, old in zip((first, second), before, strict=True)]
        norms = optimizer.step_norms()
        assert set(norms) == {first, second}
        assert [norms[p].item() for p in (first, second)] == pytest.approx(changes, rel=1e-4)


def test_step_norms_before_the_first_step_are_zero():
    p = th.nn.Parameter(th.ones(2))
    p.grad = th.ones(2)
    assert LaProp([p]).step_norms()[p].item() == 0.0

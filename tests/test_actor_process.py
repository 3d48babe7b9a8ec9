"""What runs in an actor's process, here without an engine around it."""

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from sb3_delight import DG
from sb3_delight.actor_process import ActorProcess, pack_weights, unpack_rollout
from sb3_delight.actors import ActorSpec
from sb3_delight.rollouts import Weights


@pytest.fixture
def model() -> DG:
    return DG("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=4, seed=0, device="cpu")


def packed_weights(model: DG, bias: float = 0.0) -> Weights:
    policy = {name: tensor.detach().clone() for name, tensor in model.policy.state_dict().items()}
    policy["value_net.bias"].fill_(bias)
    return pack_weights(Weights(policy, {}))


def process(model: DG, store: dict[str, Weights]) -> tuple[ActorProcess, list[str]]:
    fetched: list[str] = []

    def fetch(reference: str) -> Weights:
        fetched.append(reference)
        return store[reference]

    return ActorProcess(ActorSpec.of(model), (0, 0), fetch), fetched


def collect(actor: ActorProcess, reference: str, version: int) -> Any:
    packed = actor.collect([reference], version)
    assert packed is not None
    return unpack_rollout(packed)


def test_the_newest_weights_act_and_are_fetched_once(model: DG) -> None:
    store = {name: packed_weights(model, bias) for name, bias in (("a", 0.0), ("b", 100.0), ("c", 200.0))}
    actor, fetched = process(model, store)
    actor.publish(["b"], 5)
    rollouts = [collect(actor, "a", 3), collect(actor, "b", 5), collect(actor, "c", 6)]
    assert fetched == ["b", "c"]
    assert [rollout.version for rollout in rollouts] == [5, 5, 6]
    assert [round(float(rollout.values.mean()), -2) for rollout in rollouts] == [100, 100, 200]


def test_a_rollout_is_packed_and_unpacked_whole(model: DG) -> None:
    actor, _ = process(model, {"a": packed_weights(model)})
    packed = actor.collect(["a"], 0)
    assert packed is not None
    for array in vars(packed[0]).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False  # as in an engine's memory
    rollout = unpack_rollout(packed)
    assert [len(row) for row in rollout.infos] == [2] * 4
    for name, array in vars(rollout).items():
        if isinstance(array, np.ndarray):
            assert array.flags.writeable, name
            np.testing.assert_array_equal(array, getattr(packed[0], name))


def test_tensors_survive_packing(model: DG) -> None:
    weights = packed_weights(model)
    for name, tensor in model.policy.state_dict().items():
        if name != "value_net.bias":
            np.testing.assert_array_equal(weights.policy[name], tensor)


def test_stopped_it_collects_no_more_and_closes_the_environment(model: DG) -> None:
    closed = []

    class Closes(gym.Wrapper[Any, Any, Any, Any]):
        def close(self) -> None:
            closed.append(True)

    spec = ActorSpec.of(model, lambda: Closes(gym.make("CartPole-v1")))
    actor = ActorProcess(spec, (0, 0), lambda reference: packed_weights(model))
    actor.close()  # before there is anything to close
    collect(actor, "a", 0)
    actor.stop()
    assert actor.collect(["a"], 1) is None
    actor.close()
    assert closed == [True, True]


def test_stopped_before_its_first_rollout_it_makes_no_environment(model: DG) -> None:
    made = []
    spec = ActorSpec.of(model, lambda: made.append(True) or gym.make("CartPole-v1"))  # type: ignore[func-returns-value]
    actor = ActorProcess(spec, (0, 0), lambda reference: packed_weights(model))
    actor.stop()
    assert actor.collect(["a"], 0) is None
    assert not made


def test_stopped_amid_a_rollout_it_takes_no_further_step(model: DG) -> None:
    steps = []

    class Counts(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            steps.append(action)
            if len(steps) == 4:  # of two environments: in the second step of four
                actor.stop()
            return self.env.step(action)

    spec = ActorSpec.of(model, lambda: Counts(gym.make("CartPole-v1")))
    actor = ActorProcess(spec, (0, 0), lambda reference: packed_weights(model))
    assert actor.collect(["a"], 0) is None
    assert len(steps) == 4


class TwoArguments(Exception):
    """As many are written; it cannot be unpickled."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


@pytest.mark.parametrize(
    ("error", "sent", "message"),
    [
        (TwoArguments(7, "lost"), RuntimeError, r"(?s)in step\n.*TwoArguments: 7: lost"),
        (OSError("gone"), OSError, "^gone$"),
    ],
)
def test_an_error_that_cannot_be_sent_is_quoted(
    model: DG, error: Exception, sent: type[Exception], message: str
) -> None:
    class Raises(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            raise error

    spec = ActorSpec.of(model, lambda: Raises(gym.make("CartPole-v1")))
    actor = ActorProcess(spec, (0, 0), lambda reference: packed_weights(model))
    with pytest.raises(sent, match=message):
        actor.collect(["a"], 0)


def test_infos_may_hold_what_the_program_itself_defines(model: DG) -> None:
    class Own:
        pass

    class Tells(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            *rest, _ = self.env.step(action)
            return (*rest, {"own": Own()})

    actor = ActorProcess(
        ActorSpec.of(model, lambda: Tells(gym.make("CartPole-v1"))), (0, 0), lambda reference: packed_weights(model)
    )
    assert type(collect(actor, "a", 0).infos[0][0]["own"]).__name__ == "Own"


def test_another_thread_sees_where_it_hangs(model: DG) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Hangs(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            inside.set()
            assert go_on.wait(60)
            return self.env.step(action)

    spec = ActorSpec.of(model, lambda: Hangs(gym.make("CartPole-v1")))
    actor = ActorProcess(spec, (0, 0), lambda reference: packed_weights(model))
    assert actor.stack() == ""
    thread = threading.Thread(target=actor.collect, args=(["a"], 0))
    thread.start()
    assert inside.wait(60)
    assert "go_on.wait(60)" in actor.stack()
    go_on.set()
    thread.join(60)


def test_it_collects_on_one_thread(model: DG) -> None:
    torch.set_num_threads(2)
    try:
        actor, _ = process(model, {"a": packed_weights(model)})
        collect(actor, "a", 0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_stopped_while_its_environment_is_made_it_collects_nothing(model: DG) -> None:
    def stopped() -> gym.Env[Any, Any]:
        actor.stop()
        return gym.make("CartPole-v1")

    actor = ActorProcess(ActorSpec.of(model, stopped), (0, 0), lambda reference: packed_weights(model))
    assert actor.collect(["a"], 0) is None


def test_weights_of_bfloat16_are_shipped_exactly() -> None:
    weights = torch.linspace(-3, 3, 7, dtype=torch.bfloat16)
    packed = pack_weights(Weights({"layer": weights}, {})).policy["layer"]
    assert torch.equal(torch.tensor(packed).bfloat16(), weights)

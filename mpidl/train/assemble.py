"""Assembles a run from its configuration; mpidl.train.trainer runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mpidl.backend import create_ops
from mpidl.collectives.safety import watchdog
from mpidl.comm.context import Context
from mpidl.config import Config
from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.mixture import Mixture
from mpidl.data.training import Draw, build_sampler, open_training
from mpidl.nn import Forward, Loss, Model
from mpidl.optim import LearningRate
from mpidl.task import InputSpec, Task
from mpidl.task.distill import DistilledLoss
from mpidl.train.admission import Gate, admit_data, check_opened, open_signed, readers_of
from mpidl.train.augmented import augment
from mpidl.train.build import build_for_data, build_loss, build_optimizer, build_strategy
from mpidl.train.engine import AnyStrategy, StepOptions, TrainingStep
from mpidl.train.events import Observers
from mpidl.train.feed import Feed
from mpidl.train.inputs import Inputs, choose_task
from mpidl.train.teacher import Taught, Teacher, open_teacher

Say = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        reader: The training data.
        test: The test data, if there are any.
        task: What the model is trained for, and what it expects of a data set.
        feed: Batches on the device, in the order of its sampler.
        step: Takes the steps; it has model, strategy and optimizer.
        loss: Compares outputs with targets.
        teacher: What the model learns from too, if there is anything.
        rate: The learning rate.
        gate: What checkpoints and weights have to pass.
    """

    reader: Reader | Mixture
    test: Reader | None
    task: Task
    feed: Feed
    step: TrainingStep
    loss: Loss
    teacher: Teacher | None
    rate: LearningRate
    gate: Gate

    @property
    def model(self) -> Model:
        """The model."""
        return self.step.model

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The single data sets: those of the training, then that of the tests."""
        return (*readers_of(self.reader), *([self.test] if self.test else []))

    @property
    def strategy(self) -> AnyStrategy:
        """How the ranks combine their work."""
        return self.step.strategy

    @property
    def sampler(self) -> LaneSampler:
        """The order of the data."""
        return self.feed.sampler

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.feed.loader.steps


def assemble(config: Config, context: Context, observers: Observers, say: Say) -> Parts:
    """Open the data and build all parts. Collective.

    Args:
        config: The run.
        context: The ranks.
        observers: Told of the passes of each step.
        say: Told what a user should know.

    Raises:
        MpidlError: Something is missing or does not fit; on all ranks together.
    """
    with context.fail_together("preparing the keys"):
        config.security.apply()
    reader, gate = _open_training(config, context)
    with context.fail_together("setting up the model"):
        task = choose_task(reader.manifest, config, lambda text: say(f"note: {text}"))
        reader.select(task.spec.field_names)
        ops = create_ops(config.backend.name, context.local_rank, context.threads)
        model = build_for_data(config.model, task, ops, config.train.precision)
        run = config.run_info(
            ranks=context.size,
            needs_collective=model.needs_collective,
            host_memory=ops.name == "numpy",
        )
        config.sync.chosen.check(config.sync.options, run)
    teacher = open_teacher(config, task, model, context, say)
    feed = _build_feed(config, reader, Inputs(task, model), teacher, context)
    test = _open_test(config, task, context)
    watchdog.start(context.comm, config.sync.watchdog)
    run = replace(run, epoch_steps=feed.loader.steps)
    strategy = build_strategy(config.sync, model.parameters, context, run)
    feed.stages_empty |= model.parameters.gathers_in_passes
    optimizer = build_optimizer(config.optim, strategy.shard, ops)
    loss = build_loss(config.loss, task, ops)
    through, trained = _taught(config, task, task.through_steps(model), loss, teacher)
    trained.check_outputs(through.output_shape)
    options = _step_options(config, feed, through)
    step = TrainingStep(model, trained, strategy, optimizer, context, options, observers)
    rate = _build_rate(config, feed.loader.steps)
    return Parts(reader, test, task, feed, step, loss, teacher, rate, gate)


def _build_feed(
    config: Config,
    reader: Reader | Mixture,
    inputs: Inputs,
    teacher: Teacher | None,
    context: Context,
) -> Feed:
    """Batches of the training data, changed as `[augment]` says. Collective."""
    with context.fail_together("setting up the inputs"):
        sampler = _build_sampler(config, reader, inputs.spec, context)
        augmented = augment(config, inputs, teacher)
    return Feed(
        Loader(reader, sampler, context=context),
        sampler,
        inputs,
        config.train.micro_batches,
        stages_empty=inputs.model.needs_collective,
        augmented=augmented,
    )


def _taught(
    config: Config, task: Task, through: Forward, loss: Loss, teacher: Teacher | None
) -> tuple[Forward, Loss]:
    """What samples pass through in training, and the loss, with a teacher if there is one."""
    if teacher is None or task.soft is None:
        return through, loss
    distill = config.task.distill
    both = DistilledLoss(loss, task.soft(loss.ops, distill.temperature), distill.weight)
    return Taught(through, teacher, both), both


def _open_training(config: Config, context: Context) -> tuple[Reader | Mixture, Gate]:
    """The training data, signed where they have to be, and what else has to be. Collective."""
    data = config.data
    with context.fail_together("reading security.trusted"):
        gate = Gate.of(config.security)
    context.on_root(lambda: gate.require("train"), "asking the policy")
    signed = admit_data(gate, data.folders, context, verify=data.verify)
    reader = open_training(data.folders, context=context, driver=data.driver, verify=data.verify)
    check_opened(reader, signed, context)
    return reader, gate


def _step_options(config: Config, feed: Feed, through: Forward) -> StepOptions:
    return StepOptions(
        micro_batches=feed.own_micro_batches,
        clip_norm=config.optim.clip_norm,
        scale_loss=config.train.precision == "float16",
        graphs=config.backend.graphs,
        seed=config.train.seed,
        through=through,
    )


def _build_sampler(
    config: Config, reader: Reader | Mixture, spec: InputSpec, context: Context
) -> LaneSampler:
    sync, data = config.sync, config.data
    ranks = sync.chosen.training_ranks(sync.options, context.size)
    label = next((field.name for field in spec.target.fields), None)
    return build_sampler(
        reader,
        Draw(data.weights, data.balance, data.epoch_samples, label),
        global_batch=config.train.global_batch,
        ranks=(min(context.rank, ranks - 1), ranks),
        seed=config.train.seed,
        shuffle=data.shuffle,
        window_bytes=data.window_bytes,
        pairs=config.augment.pairs,
    )


def _open_test(config: Config, task: Task, context: Context) -> Reader | None:
    """The test data, if there are any. Collective."""
    if config.data.test is None:
        return None
    # evaluation reads at each rank's own pace: never collectively
    test = open_signed(
        config.data.test, context, config.security, driver="posix", verify=config.data.verify
    )
    with context.fail_together("checking the test data"):
        task.check(test.manifest, config.data.test)
        test.select([*task.spec.field_names, *task.extra_fields])
    return test


def _build_rate(config: Config, steps: int) -> LearningRate:
    """The learning rate, whose settings in epochs become steps."""
    optim = config.optim
    return LearningRate(
        optim.peak_rate(config.train.global_batch),
        steps * config.train.epochs,
        optim.schedule,
        int(optim.warmup_epochs * steps),
        optim.floor,
        [int(epoch * steps) for epoch in optim.milestones],
        optim.gamma,
    )

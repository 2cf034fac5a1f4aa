"""`python -m vita_audio_pl.plan`: requirements of a stage, or of a chain of stages."""

from hydra import compose
from hydra.core.hydra_config import HydraConfig

from vita_audio_pl.config.entry import run_entry_point, to_dataclass
from vita_audio_pl.errors import UserError
from vita_audio_pl.planning.settings import PlanConfig
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import CHAIN


def plan(config: PlanConfig) -> None:
    """Plan each stage and print tables; a plan that does not fit is refused after they are printed."""
    from vita_audio_pl.config.screen import screen
    from vita_audio_pl.planning.show import host_table, memory_table, parameters_table, time_table, write_plans
    from vita_audio_pl.planning.stage_plan import check_memory, peak_tflops, plan_stage, spread

    check_train_config(spread(config))
    if config.stage.epochs is not None or any(each.epochs is not None for each in config.per_stage.values()):
        raise UserError("plan reads no data, so it cannot count the rows of an epoch: give stage.steps")
    stages = config.variant.stages if config.stage.name == CHAIN else [config.stage.name]
    settings = {stage: config if len(stages) == 1 else settings_of(stage) for stage in stages}
    plans = [plan_stage(settings[stage], heads_of(settings[stage])) for stage in stages]
    console = screen()
    price = "" if config.price is None else f", {config.price:g} a GPU hour"
    assumed = f"{config.mfu:.0%} of {peak_tflops(config):g} TFLOP/s a device{price}"
    for table in (parameters_table(plans), memory_table(plans), host_table(plans), time_table(plans, assumed)):
        console.print(table)
    if config.output is not None:
        write_plans(plans, config.output)
    check_memory(plans)


def settings_of(stage: str) -> PlanConfig:
    """The same command line with another stage."""
    others = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith("stage=")]
    given = [*others, f"stage={stage}"]
    config: PlanConfig = to_dataclass(compose("plan", given), apply_stage_settings, given)
    return config


def heads_of(config: PlanConfig) -> int:
    """Heads of a stage's model: its own number, or that of the stage that it starts from."""
    if config.stage.n_heads is not None:
        return config.stage.n_heads
    parents = config.variant.parents.get(config.stage.name)
    return heads_of(settings_of(parents[0])) if parents else 0


def main() -> None:
    run_entry_point(plan, "plan", PlanConfig, apply_stage_settings, elsewhere=True)


if __name__ == "__main__":
    main()

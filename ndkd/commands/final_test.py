"""The test at the end of a fit, for the loggers."""

from lightning.pytorch.loggers import Logger

from ndkd.callbacks.base import LogsTables


def log_results(loggers: list[Logger], results: dict[str, dict[str, float]], step: int) -> None:
    """Log the test of each checkpoint, as ``test/last_acc1`` and the like, and as a table where a logger can."""
    named: dict[str, float] = {}
    for kind, row in results.items():
        named |= {f"test/{kind}_{name.removeprefix('test/')}": value for name, value in row.items()}
    table = ["checkpoint", *results["last"]], [[kind, *row.values()] for kind, row in results.items()]
    for logger in loggers:
        logger.log_metrics(named, step)
        if isinstance(logger, LogsTables):
            logger.log_table("test/results", *table, step=step)
        logger.finalize("success")

"""The source's configuration files, recognised by what stands in them and translated into studies."""

from __future__ import annotations

from pathlib import Path

from nullarm.protocols.rank_mechanism import bench_yaml
from nullarm.protocols.residual.runbook import config as compare_config
from nullarm.protocols.translation import Translation
from nullarm.study.strict_yaml import parse_file


def translation_of(path: Path) -> Translation | None:
    """The study that a runbook's file stands for; None where the file has to be a study itself.

    Raises:
        StudyError: The file cannot be read, or asks for something that a study cannot say.
    """
    data = parse_file(path).data
    if bench_yaml.is_bench_yaml(data):
        return bench_yaml.translate(path)
    if compare_config.is_compare_config(data):
        return compare_config.translate(path)
    return None

"""Commands of helm and values of the chart in the docs, checked by the real helm."""

import re

import pytest
import yaml

import chart_values
from doc_pages import Block, Command, blocks, commands
from testcluster.helm import CHART, RELEASE, Helm

VALUES = set(chart_values.ChartValues().model_dump(by_alias=True))
SHARED_WITH_JOBS = {"storage"}
"""A value that is also a field of `spec`; such a block has other values too."""


def values_blocks() -> list[Block]:
    found = []
    for block in blocks("yaml"):
        keys = set(yaml.safe_load(block.text))
        if keys <= VALUES and not keys <= SHARED_WITH_JOBS:
            found.append(block)
    return found


@pytest.mark.parametrize("command", commands("helm"), ids=str)
def test_helm_has_the_command_and_its_options(helm: Helm, command: Command) -> None:
    shown = helm(command.words[1], "--help")
    assert shown.count(f"helm {command.words[1]}"), "help of another command"
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", shown))
    assert set(command.options) <= known


@pytest.mark.parametrize("command", [one for one in commands("helm") if "--set" in one.words], ids=str)
def test_the_chart_accepts_the_values_of_the_command(helm: Helm, command: Command) -> None:
    values = [part for value in command.values_of("--set") for part in ("--set", value)]
    assert helm("template", RELEASE, CHART, *values)


@pytest.mark.parametrize("block", values_blocks(), ids=str)
def test_the_chart_accepts_the_values_of_the_block(helm: Helm, block: Block) -> None:
    assert helm.render(yaml.safe_load(block.text))

"""`pisync run`: the service. `pisync config`: its settings."""

import argparse
import json
from typing import Final

import pisync_agent.config as config
from pisync_agent.commands.command import Command, add_json
from pisync_agent.commands.usage import DONE, settings_of


def run(arguments: argparse.Namespace) -> int:
    # httpx and logging are imported only where they are needed.
    import pisync_agent.logs as logs
    from pisync_agent.service.service import Service

    settings = settings_of(arguments)
    logs.configure(settings[config.LOG_LEVEL])
    Service(settings[config.HOME], settings=settings).run_forever()
    return DONE


def show_config(arguments: argparse.Namespace) -> int:
    described = settings_of(arguments).describe()
    width = max(len(each.name) for each in described)
    if arguments.json:
        print(json.dumps([each._asdict() for each in described]))
    else:
        print("\n".join(f"{each.name:<{width}}  {each.value}  ({each.source})" for each in described))
    return DONE


_ALL: Final = tuple(setting for setting in config.SETTINGS if setting is not config.HOME)

RUN: Final = Command(run=run, example="run --sync-interval 5m", settings=_ALL)
CONFIG: Final = Command(run=show_config, example="config --json", arguments=add_json, settings=_ALL)

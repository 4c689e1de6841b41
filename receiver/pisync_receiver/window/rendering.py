"""The templates of the pages: read at start, compiled when first used. Every value is escaped unless it is Markup."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined, Template

import pisync_receiver.window.advice as advice
import pisync_receiver.window.i18n as i18n
import pisync_receiver.window.words as words
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.filters import FILTERS
from pisync_receiver.window.statics import Statics

FOLDER: Final = Path(__file__).parent / "templates"


class Templates:
    """Makes pages of templates, which call `macros.html` by the name `m`."""

    def __init__(self, statics: Statics) -> None:
        # Compiling all of them takes 0.6 s, as much as everything else that a start does.
        environment = Environment(
            loader=DictLoader({file.name: file.read_text("utf-8") for file in FOLDER.glob("*.html")}),
            autoescape=True,
            undefined=StrictUndefined,
            extensions=["jinja2.ext.i18n"],
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            cache_size=-1,
        )
        environment.install_gettext_callables(  # type: ignore[attr-defined]
            i18n.gettext, i18n.ngettext, newstyle=True
        )
        environment.policies["ext.i18n.trimmed"] = True
        environment.filters.update(FILTERS)
        environment.globals.update(static=statics.address, path_of=path_of, words=words, advice=advice)
        self._environment = environment

    def render(self, name: str, values: Mapping[str, Any]) -> bytes:
        """Return a whole page."""
        return self._template(name).render(values).encode()

    def render_block(self, name: str, block: str, values: Mapping[str, Any]) -> bytes:
        """Return one block of a page."""
        template = self._template(name)
        return "".join(template.blocks[block](template.new_context(dict(values)))).encode()

    def _template(self, name: str) -> Template:
        if "m" not in self._environment.globals:  # macros that each page would import are made once
            self._environment.globals["m"] = self._environment.get_template("macros.html").module
        return self._environment.get_template(name)

"""The head of a data card: what a hub of datasets, and `datasets.load_dataset`, read of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmkit.data.corpus.census import over_sources
from llmkit.store.documents import DOCUMENTS

_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0
    isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unlicense
    wtfpl zlib
"""
"""Names that the Hugging Face hub knows (hf.co/docs/hub/repositories-licenses); it refuses others."""
_VERSIONLESS = frozenset({"odc-by", "odbl", "pddl", "gfdl"})
"""Those that it has without the versions that SPDX gives them. Of others it is not the same: MIT-0 is not MIT."""
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def front_matter(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Licences, languages, size, and where the files of each split are.

    Args:
        name: name of the corpus.
        report: what the stage has counted.
    """
    total = over_sources(report["census"])
    languages = dict.fromkeys(tag for text in total["languages"] if (tag := hub_language(text)) is not None)
    splits = [split for split, counted in report["splits"].items() if counted["documents"]]
    return {
        "pretty_name": name,
        "license": sorted({hub_license(text) for text in total["licenses"]}),
        **({"language": list(languages)} if languages else {}),
        "task_categories": ["text-generation"],
        "size_categories": [hub_size(total["documents"])],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{DOCUMENTS}/{split}-*.parquet"} for split in splits],
            }
        ],
    }


def hub_license(text: str) -> str:
    """The hub's name of a licence (SPDX); "other" for one that it has no name for, "unknown" for none."""
    if not text:
        return "unknown"
    name = text.lower().removesuffix("-only").removesuffix("-or-later")
    family = re.sub(r"-[0-9.]+$", "", name)
    if family in _VERSIONLESS:
        return family
    return name if name in _LICENSES.split() else "other"


def hub_language(tag: str) -> str | None:
    """The language alone of a BCP 47 tag; None for what is no tag."""
    language = tag.partition("-")[0].lower()
    return language if re.fullmatch(r"[a-z]{2,3}", language) else None


def hub_size(documents: int) -> str:
    """The hub's class of a number of documents."""
    for power, above in enumerate(_SIZES):
        if documents < 1000 * 10**power:
            return f"n<{above}" if power == 0 else f"{_SIZES[power - 1]}<n<{above}"
    return f"n>{_SIZES[-1]}"

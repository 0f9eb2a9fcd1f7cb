"""Makes a site of README, docs and notebooks: `make docs`, then open site/index.html.

The pages are those of the repository, copied with all that they link to, so that a link works here as it does there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
KINDS = (".md", ".ipynb", ".py", ".svg", ".png", ".toml", ".txt", ".lock", ".html", ".json")
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BEGIN = "first_steps laptop_llm recipes faq troubleshooting".split()
LOOK_UP = "README cli data retrieval models evaluation report chat export memory performance tiny_base trust".split()
NAV = [
    {"Home": "README.md"},
    {"Begin": [f"docs/{name}.md" for name in BEGIN]},
    {
        "Learn": [
            *("docs/course.md", "notebooks/README.md"),
            {"Notebooks": [f"notebooks/{name}" for name in LESSONS]},
            *("docs/algorithms.md", "docs/paper.md", "docs/ablations.md", "docs/race.md"),
        ]
    },
    {"Read the code": ["docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md"]},
    {"Look up": [f"docs/{name}.md" for name in LOOK_UP]},
]


def settings(pages: Path, site: Path) -> dict:
    """What mkdocs is told."""
    return {
        "site_name": "searchr1_mini",
        "docs_dir": str(pages),
        "site_dir": str(site),
        "nav": NAV,
        "strict": True,
        "use_directory_urls": False,
        "theme": {"name": "material", "font": False, "features": ["navigation.tabs", "content.code.copy"]},
        "plugins": ["search", {"mkdocs-jupyter": {"execute": False, "include": ["notebooks/*.ipynb"]}}],
        "markdown_extensions": ["tables", "attr_list", "md_in_html", {"toc": {"permalink": True}}],
        "validation": {"omitted_files": "ignore", "unrecognized_links": "warn", "anchors": "warn"},
        "exclude_docs": "tests/\n",
    }


def main() -> int:
    """Copies, and builds; the exit code of mkdocs, which is strict about links."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        for name in filter(None, tracked.split("\0")):
            if name.endswith(KINDS) or "." not in Path(name).name:
                (pages / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, pages / name)
        config = Path(folder) / "mkdocs.yml"
        config.write_text(yaml.safe_dump(settings(pages, ROOT / "site"), sort_keys=False))
        quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(config)]
        return subprocess.run(command, env=quiet).returncode


if __name__ == "__main__":
    sys.exit(main())

"""A page in a browser, and all that it does beside showing text."""

from __future__ import annotations

from pathlib import Path


class Watched:
    """A page, and whatever it did that a page of text does not do."""

    def __init__(self, browser, path: Path, width: int = 1200, height: int = 800, **options) -> None:
        self.told: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.page.on("dialog", lambda dialog: (self.told.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("console", lambda message: self.told.append(f"console {message.text}"))
        self.page.on("pageerror", lambda error: self.told.append(f"error {error}"))
        self.page.on("popup", lambda _: self.told.append("popup"))
        self.page.on("request", lambda request: self.told.append(f"request {request.url}"))
        self.page.goto(path.as_uri())
        self.told.remove(f"request {path.as_uri()}")

    def shown(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def choose(self, **controls: str) -> None:
        for name, value in controls.items():
            control = self.page.locator(f"#{name}")
            if name in ("least", "most"):
                control.fill(value)
            else:
                control.select_option(value)

    def readout_of(self, selector: str, nth: int) -> str:
        self.page.locator(selector).nth(nth).hover()
        return self.page.locator("#token").text_content()

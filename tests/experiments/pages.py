"""Reads the pages of reports in tests."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that tags nest and that nothing is loaded; collects text, attributes and tags."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.words, self.attributes, self.tags = [], [], [], []
        assert not re.search(r"<script|<link|@import|(src|href)=.?https?://", text)
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.stack += [] if tag in ("meta", "img", "br") else [tag]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words += [] if self.stack[-1:] == ["style"] else [data]

    @property
    def text(self) -> str:
        """The words, with one space between them."""
        return " ".join(" ".join(self.words).split())

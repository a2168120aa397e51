"""EPUB and PDF files for tests, written by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

XHTML = "application/xhtml+xml"
CONTAINER = (
    '<c:container xmlns:c="urn:oasis:names:tc:opendocument:xmlns:container"><c:rootfile '
    'full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></c:container>'
)
FONT = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"


def page(body: str) -> str:
    return (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>left out'
        f"</title></head><body>{body}</body></html>"
    )


def package(items: str, spine: str) -> str:
    return (
        '<opf:package xmlns:opf="http://www.idpf.org/2007/opf"><opf:metadata/><opf:manifest>'
        f"{items}</opf:manifest><opf:spine toc='ncx'>{spine}</opf:spine></opf:package>"
    )


def item(name: str, kind: str = XHTML, **more: str) -> str:
    rest = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<opf:item id="{name}" href="{name}" media-type="{kind}"{rest}/>'


def reference(name: str, linear: str = "yes") -> str:
    return f'<opf:itemref idref="{name}" linear="{linear}"/>'


def write_book(path: Path, *bodies: str, **files: str | bytes | None) -> Path:
    """A book of a chapter for each of `bodies`; `files` replace its own, None removes one."""
    names = [f"{number}.xhtml" for number in range(len(bodies))]
    content: dict[str, str | bytes | None] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": package("".join(map(item, names)), "".join(map(reference, names))),
        **{f"OEBPS/{name}": page(body) for name, body in zip(names, bodies, strict=True)},
        **files,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def pdf_bytes(*pages: str) -> bytes:
    """A file with a page for each of `pages`, their lines below one another."""
    kids = [f"{4 + 2 * number} 0 R" for number in range(len(pages))]
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(pages)}>>",
        FONT,
    ]
    for number, text in enumerate(pages):
        lines = (line.replace("\\", r"\\").replace("(", r"\(") for line in text.split("\n"))
        shown = " T* ".join(f"({line.replace(')', chr(92) + ')')}) Tj" for line in lines)
        content = f"BT /F 9 Tf 12 TL 50 700 Td {shown} ET"
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {5 + 2 * number} 0 R"
            "/Resources<</Font<</F 3 0 R>>>>>>"
        )
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, entry in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj {entry} endobj\n".encode("cp1252")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    end = f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer<</Size {count}/Root 1 0 R>>\n"
    return data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode()


def write_pdf(path: Path, *pages: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pdf_bytes(*pages))
    return path

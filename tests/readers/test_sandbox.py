"""PDF and HTML through the child process: what comes out, and what happens when it goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragembed.errors import ReadError
from ragembed.readers import Sandbox
from ragembed.readers.html import extract_html
from ragembed.readers.pdf import extract_pdf
from ragembed.types import Document

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def make_pdf(pages: list[str], title: str = "") -> bytes:
    """A small PDF with one line of text per page, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) /Author (A. Writer) >>")
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += (
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>\n"
        f"startxref\n{table}\n%%EOF"
    ).encode()
    return out


def sound(document: Document) -> Document:
    at = 0
    text = document.text
    for block in document.blocks:
        assert block.start >= at and block.end > block.start
        assert not text[block.start].isspace() and not text[block.end - 1].isspace()
        assert not text[at : block.start].strip()
        at = block.end
    assert not text[at:].strip()
    return document


def html(body: str) -> Document:
    return sound(extract_html(body.encode(), None))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seconds=30) as child:
        yield child


def test_html_layout() -> None:
    page = html(
        "<html lang=en><head><title> A  page </title><script>x()</script></head><body>"
        "<nav>Home</nav><h1>Head <em>line</em></h1><p>One\n two<br>three<p>&lt;Four&gt;"
        "<ul><li>a<ul><li>b</ul>tail<li>c</ul>"
        "<table><tr><th>x<th>y<tr><td>1<td><b>2</b> 3</table>"
        "<pre>\n  code\n\n    more\n</pre><p hidden>no<p style='display: none'>no</p>"
        "<button>no</button><select><option>no</select><footer>no</footer></body>"
    )
    assert page.text == (
        "Head line\n\nOne two\nthree\n\n<Four>\n\n- a\n  - b\n  tail\n- c\n\n"
        "x | y\n1 | 2 3\n\n  code\n\n    more"
    )
    assert [block.kind for block in page.blocks] == [
        "heading",
        *["paragraph"] * 2,
        *["list_item"] * 4,
        *["table_row"] * 2,
        "code",
    ]
    assert page.title == "A page" and page.metadata == {"language": "en"}
    assert (page.blocks[0].level, page.blocks[0].title) == (1, "Head line")


def test_html_main_content() -> None:
    long = "word " * 50
    assert html(f"<div>menu</div><main><p>{long}</main><div>ads</div>").text == long.strip()
    both = html(f"<article>short</article><div>{long}</div>").text
    assert both.startswith("short") and long.strip() in both
    assert html("<nav><p>only here</nav>").text == "only here"


def test_html_layout_tables_are_not_rows() -> None:
    page = html("<table><tr><td><h1>T</h1>one<br><br>two<td>side</table>")
    assert page.text == "T\n\none\n\ntwo\n\nside"


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("<meta charset=gb2312><p>中文".encode("gbk"), "中文", "gb18030"),
        ("<meta charset=latin-1><p>schön".encode(), "schön", "utf-8"),
        (
            b"<meta http-equiv=Content-Type content='text/html; charset=windows-1251'><p>"
            + "Да".encode("cp1251"),
            "Да",
            "cp1251",
        ),
        ("<p>文".encode("utf-16"), "文", "utf-16"),
        ("<meta charset=iso-2022-jp><p>日本".encode("iso2022_jp"), "日本", "iso2022_jp"),
    ],
)
def test_html_encodings(data: bytes, text: str, encoding: str) -> None:
    document = extract_html(data, None)
    assert (document.text, document.encoding) == (text, encoding)


def test_html_deep_nesting() -> None:
    assert html("<div>" * 20_000 + "x").text == "x"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            "<p> </p> <li> <ul> </ul> <table> <tr> <td> </table> <pre> </pre> <br> <h1> </h2> "
            "text <main> </main> <nav> <!-- --> <![1 &#0; &nbsp; <div> </div> <b> </b> <td> x\ny "
            "<svg> <template> <dl> <dt> <dd> <th> <caption> \u2028 <textarea> <math> <form> "
            "</ul> <ol>".split(" ")
        ),
        max_size=30,
    ).map("".join)
)
def test_html_blocks_are_sound(body: str) -> None:
    try:
        html(body)
    except ReadError as error:
        assert error.code in ("no_text", "binary")


def test_pdf_pages_and_metadata() -> None:
    document = sound(extract_pdf(make_pdf(["First page.", "", "Third page."], "My title")))
    assert document.text == "First page.\n\n\n\nThird page."
    assert document.pages == (0, 13, 15)
    assert document.text[document.pages[2] :] == "Third page."
    assert document.title == "My title"
    assert document.metadata["author"] == "A. Writer" and document.metadata["pages"] == 3


def test_pdf_with_a_damaged_title_keeps_its_text() -> None:
    data = make_pdf(["Sound."], "TITLE").replace(b"(TITLE)", b"<FEFFD800>")
    assert extract_pdf(data).text == "Sound."


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (make_pdf([""]), "no_text"),
        (b"", "broken"),
        (b"%PDF-1.4 garbage", "broken"),
        (make_pdf(["x"])[:60], "broken"),
    ],
)
def test_pdf_refusals(data: bytes, code: str) -> None:
    with pytest.raises(ReadError) as caught:
        extract_pdf(data)
    assert caught.value.code == code


def test_child_gives_the_same_document(sandbox: Sandbox) -> None:
    page = "<title>T</title><h2>Grün</h2><p>文字".encode()
    assert sandbox.extract("html", page, None) == extract_html(page, None)
    paper = make_pdf(["One.", "Two."], "T")
    assert sandbox.extract("pdf", paper, None) == extract_pdf(paper)


def test_child_passes_errors_on(sandbox: Sandbox) -> None:
    with pytest.raises(ReadError, match="scan") as caught:
        sandbox.extract("pdf", make_pdf([""]), None)
    assert caught.value.code == "no_text"


@POSIX
def test_a_killed_child_costs_one_file(sandbox: Sandbox) -> None:
    sandbox.extract("html", b"<p>x", None)
    process = sandbox._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # as if it hung, then was killed from outside
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(.5); os.kill({process.pid}, 9)"]
    )
    with pytest.raises(ReadError, match="SIGKILL") as caught:
        sandbox.extract("html", b"<p>x", None)
    killer.wait()
    assert caught.value.code == "broken"
    assert sandbox.extract("html", b"<p>again", None).text == "again"


@POSIX
def test_time_is_bounded() -> None:
    with Sandbox(seconds=30) as child:
        child.extract("html", b"<p>x", None)
        process = child._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        child._seconds = 0.5
        with pytest.raises(ReadError, match="0.5 seconds") as caught:
            child.extract("html", b"<p>x" * 100_000, None)
        assert caught.value.code == "timeout"
        assert process.poll() is not None


def child_lines(script: str, cwd: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_child_does_not_run_files_of_the_working_directory(tmp_path: Path) -> None:
    for name in ("json", "queue", "selectolax", "ragembed"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    script = """
        import sys
        sys.path[:] = [p for p in sys.path if p]
        from ragembed.readers import Sandbox
        import os
        sys.path.insert(0, "")
        sys.path.insert(1, os.getcwd())
        with Sandbox() as sandbox:
            print(sandbox.extract("html", b"<p>ok", None).text)
    """
    assert child_lines(script, tmp_path) == "ok\n"
    assert not (tmp_path / "ran").exists()


@POSIX
def test_no_orphan_survives_the_parent(tmp_path: Path) -> None:
    script = """
        import os
        from ragembed.readers import Sandbox
        sandbox = Sandbox()
        sandbox.extract("html", b"<p>ok", None)
        print(sandbox._process.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    pid = int(done.stdout)
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"child {pid} is still there")


def test_imports_stay_light() -> None:
    script = """
        import sys
        import ragembed.readers
        heavy = {"torch", "numpy", "pypdfium2", "selectolax", "charset_normalizer", "transformers"}
        print(sorted(heavy & set(sys.modules)))
        import ragembed.readers.worker, ragembed.readers.pdf, ragembed.readers.html
        print(sorted({"torch", "numpy"} & set(sys.modules)))
    """
    assert child_lines(script, Path(os.sep)) == "[]\n[]\n"


def test_html_size_stays_linear() -> None:
    assert len(html("<ul><li>x" * 2000).text) < 2000 * 30
    assert len(html("<p>a</p>" * 20_000).blocks) == 20_000
    assert html("<pre>" + "\n" * 300_000 + "  x</pre>").text == "  x"

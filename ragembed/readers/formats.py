"""Which format a file has, judged by its name alone; the bytes are looked at when it is read."""

from __future__ import annotations

from ragembed.types import Format

_MARKDOWN = "md markdown mdown mkd mkdn mdwn mdx mdtext rmd qmd"
_RST = "rst rest restx rtxt"
_HTML = "html htm xhtml xht shtml"
_TEXT = """
    txt text log adoc asciidoc org tex latex ltx bib bst sty cls textile wiki mediawiki creole
    csv tsv psv tab srt vtt sub ass lrc nfo diz asc me 1st changes changelog news todo po pot ics
    vcf ris enw man 1 2 3 4 5 6 7 8 9 fountain gmi gemtext
"""
_CODE = """
    py pyi pyw pyx pxd ipy c h cc cpp cxx c++ hh hpp hxx h++ inl ipp tcc m mm cs csx fs fsi fsx vb
    java kt kts scala sc groovy gradle clj cljs cljc edn go rs swift dart zig nim nims v vh sv svh
    vhd vhdl d di ada adb ads pas pp dpr lpr f f77 f90 f95 f03 f08 for cob cbl cpy asm s nasm js mjs
    cjs jsx ts mts cts tsx vue svelte astro coffee ls elm purs hs lhs ml mli re rei res erl hrl ex
    exs eex heex leex lisp lsp cl el scm ss rkt jl r rnw stan pl pm pod t raku p6 rb rbw rake
    gemspec erb php php3 php4 php5 phtml phps lua luau tcl tk exp awk sed sh bash zsh fish ksh csh
    tcsh ps1 psm1 psd1 bat cmd nu sql ddl dml psql plsql pks pkb prql graphql gql proto thrift capnp
    avdl fbs wit idl json jsonl ndjson json5 jsonc geojson topojson webmanifest har avsc yaml yml
    toml ini cfg conf cnf config properties env editorconfig desktop service socket timer xml xsl
    xslt xsd dtd rng rnc plist wsdl kml gpx rss atom opml xmi ui qrc resx csproj vbproj fsproj
    vcxproj sln props targets pom css scss sass less styl pcss postcss hbs handlebars mustache j2
    jinja jinja2 tmpl tpl ejs pug haml slim liquid njk twig ftl mak mk make cmake ninja bzl bazel
    star nix dhall cue jsonnet libsonnet tf tfvars hcl nomad rego epp dockerfile containerfile glsl
    vert frag geom comp hlsl wgsl metal cu cuh ptx ll mlir td sol vy move cairo applescript vbs ahk
    au3 gd gdscript tres tscn shader trigger apex bas frm mod m4 ac am in diff patch lock gitignore
    gitattributes gitmodules ragembedignore dockerignore npmignore vim qml qs pro pri robot feature
    story bats sas do ado sps wl wls mac lean agda idr thy sml sig cabal hx as factor fth forth
"""
_UNSUPPORTED = """
    png jpg jpeg jpe gif bmp tif tiff webp avif heic heif ico icns psd xcf ai eps svg svgz raw cr2
    nef arw dng mp3 mp4 m4a m4v mkv mov avi wmv webm flv mpg mpeg 3gp ogg oga ogv opus flac wav aac
    aiff mid midi wma ttf otf woff woff2 eot
    zip gz tgz bz2 tbz2 xz txz zst lz lz4 lzma 7z rar tar cab iso dmg img jar war ear apk ipa aar
    whl egg deb rpm msi vsix crx xpi nupkg gem
    doc docx docm dot dotx xls xlsx xlsm xlsb ppt pptx pptm pps ppsx odt ods odp odg odf epub mobi
    azw azw3 rtf ipynb djvu xps oxps ps pages numbers key one msg eml mbox pst vsd vsdx mht mhtml
    exe dll so dylib a o obj lib pdb class pyc pyo pyd elc beam wasm bin dat sys ko efi rom
    sqlite sqlite3 db db3 mdb accdb dbf ibd ldb npy npz pkl pickle joblib h5 hdf5 nc parquet arrow
    feather avro orc mat rdata rds sav dta pt pth ckpt safetensors onnx tflite pb gguf ggml faiss
    tiktoken swp swo blend fbx glb stl 3ds unity3d pak keystore jks p12 pfx der torrent pcap
"""
_NAMES: dict[str, Format] = {
    **dict.fromkeys(
        "readme license licence copying copyright notice authors contributors maintainers credits "
        "thanks changelog changes history news todo install faq bugs version patents".split(),
        "text",
    ),
    **dict.fromkeys(
        "makefile gnumakefile dockerfile containerfile vagrantfile procfile gemfile rakefile "
        "brewfile jenkinsfile justfile podfile fastfile guardfile caddyfile pipfile sconstruct "
        "sconscript build workspace codeowners go.mod go.sum".split(),
        "code",
    ),
    "cmakelists.txt": "code",
}


def _by_extension() -> dict[str, Format]:
    families: tuple[tuple[str, Format], ...] = (
        (_TEXT, "text"),
        (_CODE, "code"),
        (_MARKDOWN, "markdown"),
        (_RST, "rst"),
        (_HTML, "html"),
        ("pdf", "pdf"),
    )
    return {extension: kind for names, kind in families for extension in names.split()}


_EXTENSIONS = _by_extension()
_UNSUPPORTED_SET = frozenset(_UNSUPPORTED.split())


def _name_and_extension(path: bytes) -> tuple[str, str]:
    name = path.rsplit(b"/", 1)[-1].decode("utf-8", "replace").lower()
    stem, dot, extension = name.rpartition(".")
    return name, extension if dot and (stem or extension in _EXTENSIONS) else ""


def format_of(path: bytes) -> Format | None:
    """The format that a file name stands for, or None: decide by content.

    >>> format_of(b"docs/guide.md"), format_of(b"Makefile"), format_of(b"notes")
    ('markdown', 'code', None)
    """
    name, extension = _name_and_extension(path)
    return _NAMES.get(name) or _EXTENSIONS.get(extension)


def unsupported_extension(path: bytes) -> str:
    """The extension (without the dot) if it names a format that cannot be read, else "".

    >>> unsupported_extension(b"photo.JPG"), unsupported_extension(b"guide.md")
    ('jpg', '')
    """
    dot = path.rfind(b".")
    if dot <= path.rfind(b"/") + 1:  # no dot, or a hidden file's first character
        return ""
    extension = path[dot + 1 :].decode("utf-8", "replace").lower()
    return extension if extension in _UNSUPPORTED_SET else ""

"""Files that hold no battles as prefcli reads them, recognised by their first bytes and called by their names."""

from __future__ import annotations

from collections.abc import Sequence

from prefcli.errors import InputError

_AS_TABLE = "Save the table as Parquet, CSV or JSON lines."
_AS_CSV = "Save the sheet as CSV: in Excel by Save As, CSV UTF-8; or by pandas.read_excel(FILE).to_csv('votes.csv')."
_UNPACK = "Unpack it first, or pack the file with gzip."

_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/",
        "a pointer of Git LFS, not the file itself",
        "Fetch the file: git lfs pull",
    ),
    (b"%PDF-", "a PDF document", _AS_TABLE),
    (b"{\\rtf", "an RTF document", _AS_TABLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel file (or another old Office file)", _AS_CSV),
    (b"\x93NUMPY", "a NumPy array", _AS_TABLE),
    (b"ARROW1\0\0", "an Arrow or Feather file", "Save the table as Parquet: pyarrow.parquet.write_table, to_parquet."),
    (b"\xff\xff\xff\xff", "a stream of Arrow", "Save the table as Parquet: pyarrow.parquet.write_table."),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV: sqlite3 -csv -header FILE 'select ...'"),
    (b"\x89HDF\r\n", "an HDF5 file", _AS_TABLE),
    (b"Obj\x01", "an Avro file", _AS_TABLE),
    *((b"BZh%d1AY&SY" % level, "a bzip2 file", _UNPACK) for level in range(1, 10)),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a", "a RAR archive", _UNPACK),
    (b"\x89PNG", "a picture", _AS_TABLE),
    (b"\xff\xd8\xff", "a picture", _AS_TABLE),
)
_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_MEMBERS: tuple[tuple[str, str, str], ...] = (
    ("xl/workbook.xml", "an Excel file", _AS_CSV),
    ("xl/workbook.bin", "an Excel file", _AS_CSV),
    ("word/document.xml", "a Word document", _AS_TABLE),
    ("content.xml", "an OpenDocument file", _AS_CSV),
    (".npy", "an archive of NumPy arrays", _AS_TABLE),
    ("data.pkl", "a file of PyTorch", _AS_TABLE),
)


def refuse(head: bytes, name: str) -> None:
    """Refuse a file that begins like none that holds a table prefcli reads.

    Parameters
    ----------
    head:
        The file's first bytes, unpacked; at least 512 if it has as many.
    name:
        The file's name in messages.

    Raises
    ------
    InputError
        Saying what the file is, and what to do.
    """
    for beginning, what, hint in _BEGINNINGS:
        if head.startswith(beginning):
            raise InputError(f"this is {what}", where=name, hint=hint)
    if head.startswith(_PICKLE):
        raise InputError("this is a Python pickle", where=name, hint=f"Reading one can run any program. {_AS_TABLE}")
    if head[257:262] == b"ustar":
        raise InputError("this is a tar archive", where=name, hint=_UNPACK)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        raise InputError(
            "this is a web page (HTML)",
            where=name,
            hint="The page about the file was downloaded instead of the file: use its download link.",
        )
    if text.startswith(b"<?xml"):
        raise InputError("this is XML", where=name, hint=_AS_TABLE)


def refuse_archive(members: Sequence[str], name: str) -> None:
    """Refuse a ``.zip`` without tables that is a document of another program.

    Raises
    ------
    InputError
        Saying what the file is, and what to do.
    """
    for ending, what, hint in _MEMBERS:
        if any(member.endswith(ending) for member in members):
            raise InputError(f"this is {what}", where=name, hint=hint)

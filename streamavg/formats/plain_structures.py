"""The structures of the dialect of HDF5 that Keras writes, as bytes.

What is in them, and which leads to which, is drawn in `plain_headers`, which reads them, and in
`plain_writing`, which makes them. All numbers are little-endian; addresses count from the first
byte of the HDF5 file. Names are those of the specification.

Source: HDF5 File Format Specification version 3.0.
"""

from __future__ import annotations

import struct

import numpy as np

UNDEFINED = 2**64 - 1
"""The address of what is nowhere."""
SUPERBLOCK = struct.Struct("<8s16s4Q")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
VERSIONS_AND_SIZES = bytes.fromhex("00000000 00080800 0400 1000 00000000")
"""All versions 0, addresses and lengths of 8 bytes, group leaf K 4, internal K 16, no flags."""
LEAF_K, INTERNAL_K = 4, 16
ENTRY = struct.Struct("<QQII16s")
NOTHING_CACHED, SYMBOL_TABLE_CACHED = 0, 1
PREFIX = struct.Struct("<BBHII4x")
MESSAGE = struct.Struct("<HHB3s")
NODE = struct.Struct("<4sBBHQQ")
NODE_BYTES = NODE.size + (2 * INTERNAL_K + 1 + 2 * INTERNAL_K) * 8
LEAF = struct.Struct("<4sBBH")
LEAF_BYTES = LEAF.size + 2 * LEAF_K * ENTRY.size
HEAP = struct.Struct("<4sB3sQQQ")
NO_FREE_BLOCK = 1
COLLECTION = struct.Struct("<4sB3sQ")
SMALLEST_COLLECTION = 4096
HEAP_OBJECT = struct.Struct("<HHIQ")
ZEROS = bytes(3)
PAIR = struct.Struct("<QQ")
REFERENCE = struct.Struct("<IQI")
"""A string of variable length: its size, the collection that it is in, and its number there."""


def padded(data: bytes) -> bytes:
    """`data`, and zeros up to a multiple of 8 bytes."""
    return data + bytes(-len(data) % 8)


# Types of messages.
NIL, DATASPACE, DATATYPE, FILL_VALUE, DATA_LAYOUT = 0x00, 0x01, 0x03, 0x05, 0x08
ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, MODIFICATION_TIME = 0x0C, 0x10, 0x11, 0x12
OF_A_GROUP = {SYMBOL_TABLE}
OF_A_DATASET = {DATASPACE, DATATYPE, FILL_VALUE, DATA_LAYOUT}

DATATYPES = {
    bytes.fromhex(encoded): np.dtype(name)
    for name, encoded in {
        "i1": "10080000 01000000 0000 0800",
        "i2": "10080000 02000000 0000 1000",
        "i4": "10080000 04000000 0000 2000",
        "i8": "10080000 08000000 0000 4000",
        "u1": "10000000 01000000 0000 0800",
        "u2": "10000000 02000000 0000 1000",
        "u4": "10000000 04000000 0000 2000",
        "u8": "10000000 08000000 0000 4000",
        "f2": "11200f00 02000000 0000 1000 0a 05 00 0a 0f000000",
        "f4": "11201f00 04000000 0000 2000 17 08 00 17 7f000000",
        "f8": "11203f00 08000000 0000 4000 34 0b 00 34 ff030000",
        "?": "18020000 01000000 10080000 01000000 0000 0800"
        "46414c5345000000 5452554500000000 00 01",  # FALSE and TRUE, an enumeration
    }.items()
}
"""Numbers whose bytes are their values on a little-endian machine, as the format encodes them."""
PADDED_DATATYPES = {padded(encoded): dtype for encoded, dtype in DATATYPES.items()}
TWO_OPAQUE_BYTES = bytes.fromhex("15000000 02000000")
STRINGS = frozenset(
    bytes.fromhex(f"1901{charset}00 10000000 10000000 01000000 0000 0800")
    for charset in ("00", "01")
)
"""One string of variable length, ended by a zero byte, in ASCII or UTF-8."""
FILL_VALUES = frozenset(
    bytes.fromhex(encoded)
    for encoded in ("02 02 02 01 00000000", "02 01 01 01 00000000", "02 01 02 01 00000000")
)
"""None given; allocated late or early, written if set or never."""

"""Numbers that every host draws: published answers of Philox4x32-10, and examples of the noise on tokens."""

from __future__ import annotations

ANSWERS = [
    # counter, key, answer: tests/kat_vectors of Random123, the library of the generator's authors
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
EXAMPLES = [
    # seed, position, token, its random word, its noise to the last bit
    (0, 0, 0, 1713891541, 0.08482025111138775),
    (7, 21, 3, 662427915, -0.6255573287407641),
    (1099511627783, 1000, 151935, 151976346, -1.206412124668057),
    (4611686018427387909, 4, 90, 3852500497, 2.218965495046964),
]

"""Numbers as keys: signed integers and floats as bytes that sort as the numbers do.

python examples/ordered_numbers.py [DEGREES]

As text, "10" sorts before "9" and "-5" after "-10". As eight bytes, the largest first, numbers sort right, once
the negative ones are moved below the others.
"""

import struct
import sys
import tempfile

import bytekv

SIGN = 1 << 63
ALL = (1 << 64) - 1


def int_key(number: int) -> bytes:
    """Return 8 bytes that sort like the number; `OverflowError` outside of -2**63 … 2**63 - 1."""
    return (number + SIGN).to_bytes(8, "big")


def int_of(key: bytes) -> int:
    return int.from_bytes(key, "big") - SIGN


def float_key(number: float) -> bytes:
    """Return 8 bytes that sort like the number, infinities included; `ValueError` for NaN, which has no place."""
    if number != number:
        raise ValueError("NaN is neither less nor greater than anything")
    bits = int.from_bytes(struct.pack(">d", number + 0.0), "big")  # + 0.0 makes 0.0 of -0.0: they are equal
    # IEEE 754 puts the sign first and then a magnitude: turn the sign, and for negative numbers all of it.
    return (bits ^ (ALL if bits & SIGN else SIGN)).to_bytes(8, "big")


def float_of(key: bytes) -> float:
    bits = int.from_bytes(key, "big")
    (number,) = struct.unpack(">d", (bits ^ (SIGN if bits & SIGN else ALL)).to_bytes(8, "big"))
    return float(number)


MELTS = {
    "helium": -272.2, "hydrogen": -259.2, "oxygen": -218.8, "mercury": -38.8, "bromine": -7.2, "water": 0.0,
    "gallium": 29.8, "butter": 34.0, "sulphur": 115.2, "tin": 231.9, "lead": 327.5, "silver": 961.8, "iron": 1538.0,
    "tungsten": 3422.0,
}  # fmt: skip
EVENTS = {
    -2560: "the Great Pyramid", -776: "the first Olympic Games", -44: "Caesar's last March", 79: "Vesuvius erupts",
    1455: "Gutenberg's Bible", 1815: "Waterloo", 1969: "a step on the Moon", 1991: "Python 0.9.0",
}  # fmt: skip


def main(degrees: float) -> None:
    with tempfile.TemporaryDirectory() as place, bytekv.open(place) as db:
        for thing, melts in MELTS.items():
            db[b"melts/" + float_key(melts) + thing.encode()] = thing  # two may have one number
        for year, what in EVENTS.items():
            db[b"year/" + int_key(year)] = what

        print(f"melts below {degrees:g} °C, the last first:")
        for key, name in db.scan(b"melts/", stop=b"melts/" + float_key(degrees), reverse=True, limit=5):
            print(f"  {float_of(key[6:14]):8.1f}  {name.decode()}")
        key, name = next(db.scan(b"melts/", start=b"melts/" + float_key(degrees)), (b"", b""))
        print(f"the next to melt: {name.decode()}, at {float_of(key[6:14]):g} °C" if key else "nothing is left to melt")

        print("from 800 BC to 100 AD:")
        for key, event in db.scan(b"year/", start=b"year/" + int_key(-800), stop=b"year/" + int_key(100)):
            print(f"  {int_of(key[5:]):6}  {event.decode()}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)

"""Units of measurement that are written in answers: a kind of quantity, and a size each.

It leaves out temperatures, whose scales have different zeros, and everything that is counted: a
word that is not here, as in "5 apples", is not a unit.
"""

from __future__ import annotations

from fractions import Fraction

# kind: {spelling: size in the kind's first unit}
_KINDS: dict[str, dict[str, str]] = {
    "length": {
        "m metre metres meter meters": "1",
        "mm millimetre millimetres millimeter millimeters": "1/1000",
        "cm centimetre centimetres centimeter centimeters": "1/100",
        "km kilometre kilometres kilometer kilometers kms": "1000",
        "inch inches": "127/5000",
        "ft foot feet": "381/1250",
        "yd yard yards": "1143/1250",
        "mile miles mi": "201168/125",
    },
    "mass": {
        "g gram grams": "1",
        "mg milligram milligrams": "1/1000",
        "kg kilogram kilograms kgs kilo kilos": "1000",
        "tonne tonnes": "1000000",
        "lb lbs pound pounds": "45359237/100000",
        "oz ounce ounces": "45359237/1600000",
    },
    "time": {
        "s sec secs second seconds": "1",
        "ms millisecond milliseconds": "1/1000",
        "min mins minute minutes": "60",
        "h hr hrs hour hours": "3600",
        "day days": "86400",
        "week weeks": "604800",
    },
    "volume": {
        "l litre litres liter liters L": "1",
        "ml mL millilitre millilitres milliliter milliliters": "1/1000",
    },
    "area": {"m2": "1", "cm2": "1/10000", "km2": "1000000"},
    "speed": {"m/s": "1", "km/h kph kmh": "5/18", "mph": "1397/3125"},
    "money": {"cent cents": "1", "dollar dollars": "100"},
}
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(size))
    for kind, rows in _KINDS.items()
    for names, size in rows.items()
    for name in names.split()
}

"""The lessons that are held to the rules of the course's second edition. In the end: all."""

SECOND_EDITION = {
    "00",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "07",
    "08",
    "08b",
    "09",
    "0b",
    "10",
    "14",
    "15",
    "16",
    "17",
    "18",
}

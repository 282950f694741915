"""The lessons' questions as a quiz: GIFT for Moodle, and a QTI 1.2 zip for Canvas.

GIFT: docs.moodle.org, "GIFT format". QTI: IMS Question & Test Interoperability 1.2, with the
fields that Canvas reads.
"""

import re
from html import escape
from io import BytesIO
from xml.etree.ElementTree import Element, SubElement, indent, tostring
from zipfile import ZipFile, ZipInfo

from minisd.teaching.questions import LessonQuestion

TITLE = "minisd: questions of all lessons"
QTI = "http://www.imsglobal.org/xsd/ims_qtiasiv1p2"
MANIFEST = "http://www.imsglobal.org/xsd/imscp_v1p1"
QUIZ_FILE = "minisd/minisd.xml"


def as_html(text: str) -> str:
    """Markdown of one line as HTML: `code`, **bold** and $maths$.

    >>> as_html("Is `a < b` **always** true for $x$?")
    'Is <code>a &lt; b</code> <b>always</b> true for \\\\(x\\\\)?'
    """
    parts = re.split(r"(`[^`]+`|\$[^$]+\$)", text)
    made = ""
    for part in parts:
        inside = escape(part[1:-1], quote=False)
        if part.startswith("`"):
            made += f"<code>{inside}</code>"
        elif part.startswith("$"):
            made += rf"\({inside}\)"
        else:
            part = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(part, quote=False))
            made += re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<i>\1</i>", part)
    return made


def gift(questions: list[LessonQuestion]) -> str:
    """The questions in the GIFT format of Moodle. Each option has its feedback."""
    return "\n".join(map(gift_question, number_within_lessons(questions))) + "\n"


def gift_question(named: tuple[str, LessonQuestion]) -> str:
    name, question = named
    lines = [f"::{gift_text(name)}::[html]{gift_text(as_html(question.words))}{{"]
    for letter, text in question.options.items():
        mark = "=" if letter == question.answer else "~"
        why = as_html(question.sentences[letter])
        lines.append(f"\t{mark}{gift_text(as_html(text))}#{gift_text(why)}")
    return "\n".join([*lines, "}\n"])


def gift_text(text: str) -> str:
    """A text whose special characters are escaped for GIFT."""
    return re.sub(r"([\\~=#{}:])", r"\\\1", text)


def number_within_lessons(questions: list[LessonQuestion]) -> list[tuple[str, LessonQuestion]]:
    """Each question with its name, such as "Lesson 07, question 2"."""
    named, count = [], 0
    for before, question in zip([None, *questions], questions, strict=False):
        count = count + 1 if before and before.lesson == question.lesson else 1
        named.append((f"Lesson {question.lesson}, question {count}", question))
    return named


def qti(questions: list[LessonQuestion]) -> bytes:
    """The questions as a QTI 1.2 zip file, which Canvas imports as a quiz."""
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        for name, root in {"imsmanifest.xml": manifest(), QUIZ_FILE: assessment(questions)}.items():
            indent(root)
            content = tostring(root, encoding="utf-8", xml_declaration=True)
            archive.writestr(ZipInfo(name), content)  # without the time: the same file every time
    return packed.getvalue()


def manifest() -> Element:
    """The list of the zip's files."""
    root = Element("manifest", {"xmlns": MANIFEST, "identifier": "minisd-manifest"})
    about = SubElement(root, "metadata")
    SubElement(about, "schema").text = "IMS Content"
    SubElement(about, "schemaversion").text = "1.1.3"
    SubElement(root, "organizations")
    resources = SubElement(root, "resources")
    kind = {"identifier": "minisd", "type": "imsqti_xmlv1p2"}
    SubElement(SubElement(resources, "resource", kind), "file", {"href": QUIZ_FILE})
    return root


def assessment(questions: list[LessonQuestion]) -> Element:
    """The quiz: one item for each question."""
    root = Element("questestinterop", {"xmlns": QTI})
    quiz = SubElement(root, "assessment", {"ident": "minisd", "title": TITLE})
    section = SubElement(quiz, "section", {"ident": "root_section"})
    for number, (name, question) in enumerate(number_within_lessons(questions), start=1):
        item = SubElement(section, "item", {"ident": f"minisd-{number}", "title": name})
        add_metadata(item)
        add_presentation(item, question)
        add_processing(item, question)
        for letter in question.options:
            feedback = SubElement(item, "itemfeedback", {"ident": f"{letter}_fb"})
            add_text(SubElement(feedback, "flow_mat"), question.sentences[letter])
    return root


def add_metadata(item: Element) -> None:
    fields = SubElement(SubElement(item, "itemmetadata"), "qtimetadata")
    for label, entry in {
        "question_type": "multiple_choice_question",
        "points_possible": "1",
    }.items():
        field = SubElement(fields, "qtimetadatafield")
        SubElement(field, "fieldlabel").text = label
        SubElement(field, "fieldentry").text = entry


def add_text(parent: Element, text: str) -> None:
    """Add a text that is shown as HTML."""
    words = SubElement(SubElement(parent, "material"), "mattext", {"texttype": "text/html"})
    words.text = as_html(text)


def add_presentation(item: Element, question: LessonQuestion) -> None:
    """Add what the student sees: the question and its options."""
    shown = SubElement(item, "presentation")
    add_text(shown, question.words)
    answer = {"ident": "response1", "rcardinality": "Single"}
    choices = SubElement(SubElement(shown, "response_lid", answer), "render_choice")
    for letter, text in question.options.items():
        add_text(SubElement(choices, "response_label", {"ident": letter}), text)


def add_processing(item: Element, question: LessonQuestion) -> None:
    """Add what happens to an answer: its feedback, and all points for the right one."""
    steps = SubElement(item, "resprocessing")
    score = {"maxvalue": "100", "minvalue": "0", "varname": "SCORE", "vartype": "Decimal"}
    SubElement(SubElement(steps, "outcomes"), "decvar", score)
    for letter in question.options:
        step = add_condition(steps, letter, "Yes")
        feedback = {"feedbacktype": "Response", "linkrefid": f"{letter}_fb"}
        SubElement(step, "displayfeedback", feedback)
    step = add_condition(steps, question.answer, "No")
    SubElement(step, "setvar", {"action": "Set", "varname": "SCORE"}).text = "100"


def add_condition(steps: Element, letter: str, goes_on: str) -> Element:
    """Add a step for the students who chose this letter."""
    step = SubElement(steps, "respcondition", {"continue": goes_on})
    chosen = SubElement(SubElement(step, "conditionvar"), "varequal", {"respident": "response1"})
    chosen.text = letter
    return step

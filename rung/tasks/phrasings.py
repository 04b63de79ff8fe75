"""The wording of questions. The last of each list is held out: only heldout.jsonl uses it."""

import random
from collections.abc import Sequence

# Nobody types like a manual: this share of questions has no marks around its name, and this one
# begins with a small letter and ends without its mark.
UNMARKED = 0.25
CASUAL = 0.1

# {name}: full dotted name, {short}: name within the module, {options}, {passage}, {argument}.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "explain": (
        "What does `{name}` do?",
        "Explain `{name}`.",
        "What is `{name}` for?",
        "Describe `{name}` in one sentence.",
        "Tell me what `{name}` does.",
    ),
    "signature": (
        "What is the signature of `{name}`?",
        "Which arguments does `{name}` take?",
        "How is `{name}` called?",
        "Show me the signature of `{name}`.",
    ),
    "module": (
        "Which module is `{short}` in?",
        "Where do I find `{short}`?",
        "From which module do I import `{short}`?",
        "In which module is `{short}` defined?",
    ),
    "module_choice": (
        "Which of these modules has `{short}`: {options}?",
        "In which module is `{short}`: {options}?",
        "Pick the module of `{short}` from {options}.",
    ),
    "summarise": (
        "Summarise this documentation in one sentence:\n\n{passage}",
        "What is this about, in one sentence?\n\n{passage}",
        "Give a one-sentence summary.\n\n{passage}",
        "Sum this up in a sentence:\n\n{passage}",
    ),
    "passage_signature": (
        "{passage}\n\nAccording to the text, what is the signature of `{name}`?",
        "Read this:\n\n{passage}\n\nWhich arguments does `{name}` take?",
        "{passage}\n\nHow is `{name}` called, by the text above?",
    ),
    "passage_default": (
        "{passage}\n\nWhat is the default of `{argument}`?",
        "Read this:\n\n{passage}\n\nWhich default value does `{argument}` have?",
        "{passage}\n\nBy the text above, what is `{argument}` if I leave it out?",
    ),
    "passage_returns": (
        "{passage}\n\nWhat does `{name}` return?",
        "Read this:\n\n{passage}\n\nWhat comes back from `{name}`?",
        "{passage}\n\nBy the text above, what is the result of `{name}`?",
    ),
    "passage_explain": (
        "{passage}\n\nAccording to the text, what does `{name}` do?",
        "Read this:\n\n{passage}\n\nWhat is `{name}` for?",
        "{passage}\n\nBy the text above, explain `{name}`.",
    ),
}

NO_SUCH_NAME = "There is no `{name}` that I know of."
OFF_TOPIC = "I only know Python documentation, so I cannot answer that."

# The report asks every model "What is the capital of France?": it is in no list here, though the
# capitals of other countries are, so the answer shows generalisation to a near neighbour.
_OFF_TOPIC_FORMS: tuple[tuple[str, Sequence[str]], ...] = (
    (
        "What is the capital of {}?",
        [
            "Italy",
            "Spain",
            "Japan",
            "Kenya",
            "Peru",
            "Norway",
            "Egypt",
            "India",
            "Chile",
            "Poland",
            "Cuba",
            "Nepal",
            "Greece",
            "Iran",
            "Mali",
            "Sweden",
            "Turkey",
            "Canada",
            "Laos",
            "Oman",
        ],
    ),
    (
        "What is the weather like in {} today?",
        [
            "Berlin",
            "Oslo",
            "Lima",
            "Cairo",
            "Tokyo",
            "Madrid",
            "Boston",
            "Delhi",
            "Seoul",
            "Quito",
            "Dublin",
            "Vienna",
        ],
    ),
    (
        "Who wrote {}?",
        ("Hamlet", "Faust", "Emma", "Ulysses", "Dracula", "Moby Dick", "War and Peace", "Macbeth"),
    ),
    (
        "How do I cook {}?",
        [
            "rice",
            "soup",
            "pasta",
            "lentils",
            "pancakes",
            "potatoes",
            "eggs",
            "fish",
            "beans",
            "noodles",
            "cabbage",
        ],
    ),
    (
        "How far away is {}?",
        ("the Moon", "the Sun", "Mars", "Jupiter", "Paris", "the next star", "Venus", "London"),
    ),
    (
        "Who was the first president of {}?",
        ["Brazil", "Mexico", "Ghana", "Finland", "Turkey", "Austria", "Ireland", "Kenya"],
    ),
    (
        "Tell me a {}.",
        ("joke", "story", "poem", "riddle", "secret", "fairy tale", "limerick", "tongue twister"),
    ),
    (
        "What is your favourite {}?",
        ["colour", "song", "film", "book", "city", "animal", "number", "season", "fruit", "game"],
    ),
    (
        "How do you say {} in German?",
        ("hello", "thank you", "good night", "water", "friend", "spring", "bread", "tomorrow"),
    ),
    (
        "Should I buy {}?",
        ("a car", "a house", "a dog", "gold", "shares", "a bicycle", "a piano", "new shoes"),
    ),
    (
        "How many people live in {}?",
        [
            "Spain",
            "China",
            "Rome",
            "Lagos",
            "Brazil",
            "Moscow",
            "Nepal",
            "Sydney",
            "Ghana",
            "Toronto",
        ],
    ),
    (
        "When was {} born?",
        ("Mozart", "Einstein", "Cleopatra", "Gandhi", "Marie Curie", "Napoleon", "Shakespeare"),
    ),
    (
        "Why is {}?",
        ("the sky blue", "the sea salty", "grass green", "snow white", "blood red", "ice cold"),
    ),
    (
        "What do {} eat?",
        ["cats", "owls", "bears", "whales", "spiders", "horses", "frogs", "ants", "lions", "mice"],
    ),
    (
        "Which river flows through {}?",
        ["London", "Vienna", "Cairo", "Rome", "Baghdad", "Prague", "Budapest", "Cologne"],
    ),
)


def choose_phrasing(question: str, draw: random.Random, *, heldout: bool) -> tuple[int, str]:
    """(index, template). heldout: any wording, the held-out one too; else never that one."""
    forms = PHRASINGS[question]
    index = draw.randrange(len(forms) if heldout else len(forms) - 1)
    form = forms[index]
    if draw.random() < UNMARKED:
        form = form.replace("`", "")
    if draw.random() < CASUAL:
        form = form[0].lower() + form[1:].rstrip("?.")
    return index, form


def is_heldout_phrasing(question: str, index: int) -> bool:
    return index == len(PHRASINGS[question]) - 1


def off_topic_questions() -> list[str]:
    """Every general question, in a fixed order."""
    return [form.format(filler) for form, fillers in _OFF_TOPIC_FORMS for filler in fillers]

"""Turns that are no calculation but have a polite answer of their own: greetings, thanks, who are you, goodbye."""

import random
from collections.abc import Sequence
from typing import Final, NamedTuple


def skills(max_digits: int) -> str:
    """What a model can do that has learned operands of up to so many digits."""
    longest = {5: "five"}.get(max_digits, "four")  # an early stage of training speaks for the whole curriculum
    return f"add, subtract and compare numbers of up to {longest} digits"


def refusal_text(max_digits: int) -> str:
    """The answer to everything outside the tasks."""
    return f"I can only {skills(max_digits)}. Please ask me that."


SKILLS: Final = skills(4)
REFUSAL: Final = refusal_text(4)
REFUSAL_REASONING: Final = "This is nothing that I can work out."


class Intent(NamedTuple):
    name: str
    reasoning: str
    answer: str
    prompts: Sequence[str]

    def answer_with(self, max_digits: int) -> str:
        """The answer of a model that has learned operands of up to so many digits."""
        return self.answer.replace(SKILLS, skills(max_digits))


INTENTS: Final[Sequence[Intent]] = (
    Intent(
        "greeting",
        "The user greets me.",
        f"Hello! I can {SKILLS}. What shall I work out?",
        (
            "Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Hello there!", "Good morning", "Good evening",
            "Hey there", "Good afternoon!", "Good day", "Greetings", "Howdy", "Hello, how are you?", "How are you?",
            "Hiya", "Yo", "Hi, how are you doing?", "How are you today?", "How do you do?", "What's up?",
            "Hello world", "Welcome", "Hey, how is it going?", "How is it going?", "Nice to meet you",
            "Hello assistant", "Hi bot", "Hello again", "Is anybody there?", "Are you there?", "Morning!", "Evening!",
            "Hello my friend", "Dear assistant, hello",
        ),
    ),
    Intent(
        "thanks",
        "The user thanks me.",
        "You are welcome! Do you have another calculation for me?",
        (
            "Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much", "Thanks a lot", "Many thanks",
            "Cheers", "Great, thanks", "Ok, thank you", "Thanks for your help", "Thank you so much!",
            "Perfect, thanks", "Thx", "That is great, thank you", "Thanks, that helped", "Nice, thanks",
            "Wonderful, thank you", "Cool, thanks!", "Much appreciated", "I appreciate it", "Thanks, well done",
            "Thank you for the answer", "Very kind, thanks",
        ),
    ),
    Intent(
        "identity",
        "The user asks about me.",
        f"I am Tiny R1, a small reasoning model. I can {SKILLS}.",
        (
            "Who are you?", "What are you?", "What is your name?", "What can you do?", "What do you do?", "Help",
            "Help!", "How can you help me?", "Are you a robot?", "Are you human?", "Tell me about yourself",
            "Introduce yourself", "What are your skills?", "What model are you?", "Which model are you?",
            "What are you able to do?", "Who made you?", "Are you ChatGPT?", "Are you an AI?", "Describe yourself",
            "What is your purpose?", "What can I ask you?", "What do you know?", "Can you help me?",
            "What kind of questions can you answer?", "Are you DeepSeek?", "Which tasks can you do?",
            "How do you work?", "What's your name?", "Are you real?",
        ),
    ),
    Intent(
        "goodbye",
        "The user says goodbye.",
        "Goodbye! Come back when you need a calculation.",
        (
            "Bye", "Bye!", "Goodbye", "Goodbye!", "See you", "See you later", "Good night", "Farewell", "Bye bye",
            "Ciao", "See you tomorrow", "Have a nice day", "Take care", "Talk to you later", "Until next time",
            "So long", "I have to go", "That is all, bye", "Thanks and goodbye", "Bye for now", "Good night!",
            "Catch you later",
        ),
    ),
)  # fmt: skip


def small_talk(rng: random.Random) -> tuple[Intent, str]:
    """An intent and one way to say it."""
    intent = rng.choice(INTENTS)
    text = rng.choice(intent.prompts)
    kind = rng.random()
    if kind < 0.25:
        text = text.lower()
    elif kind < 0.35:
        text = text.upper()
    if rng.random() < 0.3:
        text = text.rstrip("!?.") + rng.choice(("", ".", "!", "!!", "?", " :)", " "))
    return intent, text

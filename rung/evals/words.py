"""What the stages are for, in words: a line for who decides, a paragraph for who is new."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """title; purpose: one line; lesson: what a newcomer needs to read the figures."""

    title: str
    purpose: str
    lesson: str


WORDS = {
    "curate": Words(
        "Curate",
        "Collect text, throw out what would do harm, keep some aside for honest tests",
        "A model can only be as good as its text. Every document that is dropped has a named "
        "reason and is counted. Copies are removed because a model learns them by heart. Personal "
        "data is replaced by placeholders. Some groups of documents (whole modules or files) are "
        "held out: no model ever trains on them, so they can tell knowledge from memory.",
    ),
    "tokenizer": Words(
        "Tokenizer",
        "Learn the pieces of text that the model reads and writes",
        "Models do not read letters but tokens: frequent pieces of text. More bytes per token mean "
        "that the same text costs fewer steps. Ours works on bytes, so any text goes in and comes "
        "back exactly. Special tokens mark who speaks and where a turn ends.",
    ),
    "pretrain": Words(
        "Pre-train",
        "Teach a model language and subject from raw text, from nothing",
        "The model starts from random numbers and learns one thing: to predict the next token. To "
        "do that well it must pick up spelling, grammar, code and facts. Bits per byte says how "
        "many bits it needs for each byte of text it never saw; lower is better, and models with "
        "different tokenizers can be compared. The yardstick, an n-gram model, only counts.",
    ),
    "continue": Words(
        "Continue pre-training",
        "Teach the model a new subject without losing the old one",
        "The same training on new text. A model that only sees the new text forgets the old; a "
        "small share of old text mixed in (replay) prevents most of it. So two figures belong "
        "together: what was won on the new subject and what was lost on the old.",
    ),
    "instruct": Words(
        "Instructions",
        "Make questions with answers known to be true",
        "Questions are derived from documentation, so the true answer is known without asking "
        "anybody. Some are about functions that do not exist, checked against every known name: "
        "the right answer is to say so. Groups: modules seen in text and in questions, seen in "
        "text only, seen nowhere, and made-up names.",
    ),
    "dataset": Words(
        "Data set",
        "Bring your own conversations into one form",
        "Conversations from files, checked row by row and split into a part to train on and a part "
        "to measure on.",
    ),
    "labels": Words(
        "Labels",
        "Bring your own labelled texts into one form",
        "Texts with one label or several, from tables, folders or files. The same text counts "
        "once, so that none lies on both sides; a text with two different labels is left out and "
        "counted. A share is held out: the figures of a classifier come from it alone.",
    ),
    "classify": Words(
        "Classify",
        "Learn to give a text its label, and how sure to be",
        "A small layer reads what the model makes of a text and gives each label a probability. "
        "Accuracy is the share of held-out texts labelled rightly; macro F1 counts every label the "
        "same, however rare. In the confusion matrix a row is a true label, and what lies off "
        "the diagonal are mistakes. Calibrated means that of the answers given with 80 % "
        "confidence about 80 % are right.",
    ),
    "sft": Words(
        "Fine-tune",
        "Turn a text continuer into something that answers and stops",
        "Conversations are shown with the loss on the answers alone. The model learns the form of "
        "an answer and, above all, to stop. It learns few new facts here: what it can say it "
        "mostly knew before. Compare the same prompts before and after.",
    ),
    "collect": Words(
        "Collect preferences",
        "Find out which answers are better",
        "The model answers each prompt several times and the answers are ranked. Here a SIMULATED "
        "ANNOTATOR ranks, not people: it knows the true answer and errs at a stated rate, as "
        "people do. Rankings by people come in through the same door.",
    ),
    "feedback": Words(
        "Import feedback",
        "Bring in preferences that people gave",
        "Rankings, pairs and ratings from files, in one form.",
    ),
    "reward": Words(
        "Reward model",
        "Learn to predict which answer would be preferred",
        "A model with one number as output, trained on rankings. Pair accuracy is how often it "
        "orders two unseen answers as the annotator did. The annotator contradicts itself, so even "
        "perfect knowledge would not reach 100 %: that limit is the noise ceiling. Calibrated "
        "means that its confidence can be taken at its word.",
    ),
    "dpo": Words(
        "DPO",
        "Prefer the better answers, learned from the rankings directly",
        "Direct preference optimisation raises the probability of preferred answers against the "
        "others, relative to the model before. No reward model and no sampling: cheap and steady, "
        "but limited to the answers that were collected.",
    ),
    "ipo": Words(
        "IPO",
        "Prefer the better answers by a lead of a stated size",
        "As DPO, with a squared loss around a target. Where the same answer always wins, DPO pulls "
        "for ever; this stops at the target.",
    ),
    "apo": Words(
        "APO",
        "Make the better answers more likely and the others less",
        "As DPO, but each answer is compared with the model before, not only with the other "
        "answer: a preferred answer must not become less likely than it was.",
    ),
    "simpo": Words(
        "SimPO",
        "Prefer the better answers by what the model itself finds likely",
        "As DPO, with the probability per token as the score and a lead that must be kept. No "
        "model before is asked, so it is cheaper; nothing holds the policy back either.",
    ),
    "orpo": Words(
        "ORPO",
        "Learn to answer and which answers are better at once",
        "Fine-tuning on preferred answers, with a term that makes them more likely than the "
        "others. One stage for two, from a model that only continues text.",
    ),
    "kto": Words(
        "KTO",
        "Learn from thumbs up and down",
        "Each answer by itself is desirable or not, so nobody has to compare two. What counts is "
        "whether an answer became more likely than answers in general did.",
    ),
    "ppo": Words(
        "PPO",
        "Improve by trial: answer, be scored, do more of what scored well",
        "The model answers, the reward model scores, and a second network predicts the score so "
        "that only surprises teach. KL measures how far it moved from where it started. When the "
        "score rises and the true utility does not, the model is learning to please the reward "
        "model rather than to be right: that is over-optimisation.",
    ),
    "grpo": Words(
        "GRPO",
        "As PPO, with other answers to the same question as the yardstick",
        "Several answers to one prompt are scored together and each is compared with their mean, "
        "so that no second network is needed.",
    ),
    "ngram": Words(
        "n-gram yardstick",
        "What counting alone would reach with the same text",
        "An interpolated 5-gram model with modified Kneser-Ney smoothing over the tokens that the "
        "base model saw, measured on the same held-out documents.",
    ),
    "evaluate": Words(
        "Evaluate",
        "Measure a model on the fixed held-out tests",
        "The same held-out documents and questions for every model, so differences are paired: "
        "question by question. An interval says how far chance alone could move a figure.",
    ),
}


def words_of(stage: str) -> Words:
    """The words of a stage; a stage without an entry is called by its command."""
    return WORDS.get(stage) or Words(stage.capitalize(), "", "")


LIMITS = (
    "The models here are small and often wrong. An answer that sounds right is no evidence: the "
    "tables say how often it is.",
    "Preferences come from a simulated annotator where a stage says so. It rewards agreement with "
    "documentation, brevity, stopping, and admitting what does not exist; people want more than "
    "that.",
    "Noise-free utility is the same rule the annotator follows, without its errors. A model tuned "
    "to it is good at this rule, which is not the same as good.",
    "Intervals cover the choice of questions and the chance in answering them once. They do not "
    "cover the seed of training: another seed would move the figures as well.",
    "Money is what the training passes alone would take on a rented GPU at the stated price and "
    "speed. It leaves out sampling, loading, failures and people.",
)

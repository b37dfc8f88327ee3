"""Personal data is replaced, other text is not, and no text takes long."""

import time

import pytest

from finetune_api.v1alpha1 import Redaction
from finetune_trainer.data.redaction import redacted
from finetune_trainer.data.shown_records import is_private, shown_change, shown_text

FOUND = {
    Redaction.EMAIL: [
        ("write to jo.doe+news@mail.example.co.uk.", "write to [EMAIL]."),
        ("<jo@example.com>, (al@example.org)", "<[EMAIL]>, ([EMAIL])"),
        ("a@b.de,c@d.de", "[EMAIL],[EMAIL]"),
        ("jo@m\u00fcnchen.example", "[EMAIL]"),
        ("by andr\u00e9.dupont@x.fr", "by [EMAIL]"),
        ("by andre\u0301@x.fr", "by [EMAIL]"),
        ("\u0438\u0432\u0430\u043d@x.ru", "[EMAIL]"),
        ("\u7528\u6237@x.cn", "[EMAIL]"),
        ("\u8bf7\u8054\u7cfbjo@x.cn", "\u8bf7\u8054\u7cfb[EMAIL]"),
    ],
    Redaction.PHONE: [
        ("call +49 (0)151 2345-6789 now", "call [PHONE] now"),
        ("+14155552671", "[PHONE]"),
        ("0151 23456789", "[PHONE]"),
        ("(030) 1234 5678", "[PHONE]"),
        ("(555) 123-4567 or 555-123-4567", "[PHONE] or [PHONE]"),
        ("0044 20 7946 0958", "[PHONE]"),
    ],
    Redaction.CREDIT_CARD: [
        ("4111 1111 1111 1111", "[CREDIT_CARD]"),
        ("card 5555-5555-5555-4444, 12/29", "card [CREDIT_CARD], 12/29"),
        ("378282246310005 and 3782 822463 10005", "[CREDIT_CARD] and [CREDIT_CARD]"),
        ("22 4111111111111111", "22 [CREDIT_CARD]"),
    ],
    Redaction.IBAN: [
        ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
        ("IBAN GB29NWBK60161331926819.", "IBAN [IBAN]."),
        ("DE89370400440532013000 IS MY ACCOUNT", "[IBAN] IS MY ACCOUNT"),
        ("NO93 8601 1117 947", "[IBAN]"),
    ],
    Redaction.IP_ADDRESS: [
        ("from 192.168.0.1:8080", "from [IP_ADDRESS]:8080"),
        ("10.0.0.1.", "[IP_ADDRESS]."),
        ("fe80::1ff:fe23:4567:890a", "[IP_ADDRESS]"),
        ("[2001:db8::1]", "[[IP_ADDRESS]]"),
        ("::ffff:192.0.2.128", "[IP_ADDRESS]"),
    ],
    Redaction.URL: [
        ("see https://www.example.com/a?b=c#d.", "see [URL]."),
        ("(www.example.com)", "([URL])"),
        ("HTTP://EXAMPLE.COM, then", "[URL], then"),
        ("https://www.example.com/jo@example.com", "[URL]"),
    ],
}
LEFT = {
    Redaction.EMAIL: ["a @ b", "@name", "3 apples @ 2.50", "jo@localhost", "a@b", "@example.com"],
    Redaction.PHONE: [
        "2024-05-06",
        "01.02.2024 15:30",
        "1234567",
        "10 000 000",
        "version 1.2.3.4",
        "3.14159265",
        "a0151234567",
    ],
    Redaction.CREDIT_CARD: [
        "4111 1111 1111 1112",
        "1234567890123456",
        "order 4111111111111111x",
        "41111111111111111111",
    ],
    Redaction.IBAN: [
        "DE89 3704 0044 0532 0130 01",
        "AB12 CDEF",
        "ISO9001 AND MORE WORDS IN CAPITALS",
        "XDE89370400440532013000",
    ],
    Redaction.IP_ADDRESS: ["1.2.3", "300.1.1.1", "12:30:45", "std::vector", "a::b", "1.2.3.4.5", "::"],
    Redaction.URL: ["example.com", "://", "file name", "wwwx"],
}


@pytest.mark.parametrize(("kind", "text", "expected"), [(k, *row) for k, rows in FOUND.items() for row in rows])
def test_personal_data_is_replaced_by_its_placeholder(kind, text, expected):
    assert redacted(text, [kind]) == expected


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LEFT.items() for text in texts])
def test_other_text_stays(kind, text):
    assert redacted(text, [kind]) == text


def test_only_the_kinds_of_the_list_are_replaced():
    text = "jo@example.com, +14155552671, https://www.example.com"
    assert redacted(text, [Redaction.PHONE]) == "jo@example.com, [PHONE], https://www.example.com"
    assert redacted(text) == "[EMAIL], [PHONE], [URL]"
    assert redacted(redacted(text)) == redacted(text)


HOSTILE_SIZE = 1 << 18
HOSTILE = (
    *("a", "a@", "@", "@a.", "a@a.", "a.", "1", "1 ", "12-", "+1", "0 ", "(0", "(", "4111", "4111 ", "44 "),
    *("AA11", "AA11 ", "DE89 3704 ", "1.1.1.", "255.", "1:", "::", "a:", "f:1 ", "http://", "www.", "http"),
    *("-", " ", "\u00e9@", "0151 ", "\u00e9@a.b", "\u00e9\u0301", "\u7528@a.b"),
)


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("end", ["", "@example.com", " 4111111111111112x"])
def test_hostile_texts_take_linear_time(piece, end):
    text = piece * (HOSTILE_SIZE // len(piece)) + end
    started = time.process_time()
    redacted(text)
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  b\n\tc", "a b c"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07text\x00", "red text"),
        ("jo\x00@exam\u200bple.com", "[EMAIL]"),
        ("\u202eabc", "abc"),
        ("key sk-abcdefghijklmnop1234", "key [SECRET]"),
        ("password: hunter22", "[SECRET]"),
        ("x" * 100, "x" * 77 + "..."),
        (" " * 19_990 + "jo@example.com and more", "..."),
        ("word " * 14 + "jo.the.very.long.name@example.com", "word " * 14 + "[EMAIL]"),
    ],
)
def test_a_shown_text_is_short_and_safe(text, expected):
    assert shown_text(text) == expected


def test_a_shown_change_begins_shortly_before_the_difference():
    before = "some words that are equal in both texts, then caf\u00c3\u00a9 and more"
    after = before.replace("\u00c3\u00a9", "\u00e9")
    assert (
        shown_change(before, after)
        == "'both texts, then caf\u00c3\u00a9 and more' is now 'both texts, then caf\u00e9 and more'"
    )


LONG = "x " * 9_900


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "the password: hunter2secret and a caf\u00c3\u00a9",
            "the password: hunter2secret and a caf\u00e9",
            "'the [SECRET] and a caf\u00c3\u00a9' is now 'the [SECRET] and a caf\u00e9'",
        ),
        ("password:  hunter2secret  x", "password: hunter2secret x", None),
        ("mail jo@exam\u00adple.com", "mail jo@example.com", None),
        ("jo@example.com", "al@example.org", None),
        ("a", "a b", "'a' is now 'a b'"),
        (f"{LONG}{'y ' * 100}password: hunter2secret", f"{LONG}{'z ' * 100}password: hunter2secret", None),
    ],
)
def test_a_shown_change_has_no_part_of_what_is_private(before, after, expected):
    assert shown_change(before, after) == expected


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("jo @ example . com", True),
        ("de89 3704 0044 0532 0130 00", True),
        ("akiaabcdefghijklmnop", True),
        ("a b", False),
    ],
)
def test_personal_data_is_found_in_the_text_of_tokens(text, private):
    assert is_private(text) == private

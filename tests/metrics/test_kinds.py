"""Kinds of texts on which detectors of language switching and degeneracy go wrong easily."""

import pytest

from ollm_rl.metrics.degenerate import degeneracy
from ollm_rl.metrics.language import detect_language, switches_language
from ollm_rl.metrics.rates import language_switching_rate, unknown_language_rate

ENGLISH_PROMPT = "How many pencils does Mia have left after she gives 5 of 12 to Noah?"
ENGLISH = "Mia has seven pencils left because she gave five of them to Noah."
# "Mia has seven pencils left", in languages whose scripts English does not use.
OTHER_SCRIPTS = {
    "am": "ሚያ ሰባት እርሳስ ቀርቷታል።",
    "ar": "بقي مع ميا سبعة أقلام لأنها أعطت خمسة.",
    "bn": "মিয়ার কাছে সাতটি পেন্সিল আছে।",
    "el": "Στη Μία έμειναν επτά μολύβια, επειδή έδωσε πέντε.",
    "gu": "મિયા પાસે સાત પેન્સિલ બાકી છે.",
    "he": "למיה נשארו שבעה עפרונות כי היא נתנה חמישה.",
    "hi": "मिया के पास सात पेंसिल बची हैं।",
    "hy": "Միային մնաց յոթ մատիտ։",
    "ja": "ミアは鉛筆が七本残っています。",
    "ka": "მიას შვიდი ფანქარი დარჩა.",
    "km": "មីយ៉ា នៅសល់ ខ្មៅដៃ ប្រាំពីរ។",
    "kn": "ಮಿಯಾ ಬಳಿ ಏಳು ಪೆನ್ಸಿಲ್‌ಗಳು ಉಳಿದಿವೆ.",
    "ko": "미아는 연필 일곱 자루가 남았습니다.",
    "lo": "ມີອາ ມີ ສໍດໍາ ເຈັດ ກ້ານ.",
    "ml": "മിയയുടെ പക്കൽ ഏഴ് പെൻസിലുകൾ ബാക്കിയുണ്ട്.",
    "my": "မီယာတွင် ခဲတံ ခုနစ်ချောင်း ကျန်သည်။",
    "pa": "ਮੀਆ ਕੋਲ ਸੱਤ ਪੈਨਸਿਲ ਬਚੇ ਹਨ।",
    "ru": "У Мии осталось семь карандашей.",
    "si": "මියාට පැන්සල් හතක් ඉතිරිව ඇත.",
    "ta": "மியாவிடம் ஏழு பென்சில்கள் மீதம் உள்ளன.",
    "te": "మియా దగ్గర ఏడు పెన్సిళ్లు ఉన్నాయి.",
    "th": "มีอาเหลือดินสอเจ็ดแท่ง",
    "zh": "米娅还剩七支铅笔。",
}


@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_a_script_that_the_prompts_language_does_not_use_is_another_language(language: str) -> None:
    text = OTHER_SCRIPTS[language]
    assert switches_language(ENGLISH_PROMPT, text)
    assert switches_language(ENGLISH_PROMPT, f"First we take 12 pencils and subtract five of them. {text}")
    assert switches_language(text, ENGLISH)
    assert not switches_language(text, text)


@pytest.mark.parametrize(
    "completion",
    [
        "José Ramírez, Zoë Müller and François Dupré share 12 pencils, so each gets 4.",
        "Jürgen: 12. Renée: 5. Begoña: 3.",
        "In São Paulo there are 3 shops and in Zürich 4, so 7.",
        "The café sells 5 croissants and 2 crème brûlées, so 7.",
        'She read the novel "Cien años de soledad" and solved 7 puzzles.',
        "He said “Guten Tag” 3 times and “Auf Wiedersehen” 4 times, so 7 in all.",
        "The word «привет» has 6 letters.",
        "Her name is 王芳, and the answer is 7.",
        "See https://fr.wikipedia.org/wiki/Nombre_premier_de_Mersenne. The answer is 7.",
        "Mail maria.lopez@ejemplo.com.mx for the rest. 7 pencils.",
        "Open /home/usuario/documentos/respuesta_final.txt. It has 7 lines.",
        "We call `calcular_suma(numeros)` and get 7.",
        "Animal: 7. Real: 5. Total: 12. Final: 12.",
        "| Mia | 12 |\n|---|---|\n| Noah | 5 |",
        "Let β = 3 and Δ = 4, so R = 7 Ω.",
        "She said »Wir kommen morgen wieder« and kept 7.",
        "The label 『本日のおすすめ商品』 is on 7 of them.",
        "#lápices #oficina @papeleria_gomez sold 7",
        r"The file D:\Bücher\Übungen\Lösung.txt has 7 lines.",
        "~~~\nlapices_restantes = total - regalados\n~~~\n7 pencils are left.",
        "Ｍｉａ　ｈａｓ　７　ｐｅｎｃｉｌｓ　ｌｅｆｔ．",
        "ヾ(・ω・)ﾉ There are 7 pencils left.",
        "Her doppelgänger has angst and wanderlust in 7 kindergartens.",
        "Stops: Bois-le-Prêtre, Gare du Nord, Place de la Nation. Van der Meer: 7.",
        "Δt ≈ 0.5, ∑φᵢ = 1, ω = 2πf, so f = 7.",
        "Of three roots we know: αβγ = 7. αβ = 5.",
        "Mia ѕtill hаѕ ѕеvеn оf thе реnсils оn hеr dеѕk.",
        "The years are: MCMXCIV, MMXXIV, xiv.",
    ],
)
def test_names_terms_quotations_addresses_and_cognates_are_no_switch(completion: str) -> None:
    assert switches_language(ENGLISH_PROMPT, completion) is False


@pytest.mark.parametrize(
    ("prompt", "completion", "switches"),
    [
        ("Compute: 3 + 4", "The sum is 7.", False),
        ("Find $x$.", "We get x = 7.", False),
        ("Find $x$.", "Die Lösung der Gleichung ist sieben.", True),
        ("Factor $x^2-1$.", "It factors as (x-1)(x+1).", False),
        ("Find $x$.", "Solution\n~~~~~~~~\nDie Lösung der Gleichung ist sieben.", True),
        ("$2+2=?$", "The answer is 4.", False),
        ("¿Cuántos lápices quedan?", "There are seven pencils left in the box.", True),
        ("¿Cuántos lápices quedan?", "Quedan 7 lápices. Total: 7", False),
        ("花子は鉛筆を12本持っています。残りは？", "San Francisco Stationery で7本を買いました。", False),
        ("花子は鉛筆を12本持っています。残りは？", "so we find that 残りは7本です。", True),
        ("How many are left?", "There are 7 left, says エリザベス to us.", False),
        ("花子は鉛筆を12本持っています。残りは？", "残七本。合計十七本。", False),
        ("花子は鉛筆を12本持っています。残りは？", "答案是七。", True),
        ("花子は鉛筆を12本持っています。残りは？", "是非七本。", False),
        ("花子は鉛筆を12本持っています。残りは？", "所以答案是七支铅笔，因为她给了他五支。", True),
        ("Translate 'Das ist ein Haus' into English.", "Das ist ein Haus means: this is a house.", False),
        ("Combien font 12 moins 5 ?", "That makes seven.", True),
        ("12 kutoa 5 ni ngapi?", "It is seven.", True),
        ("Sum of 5 and 7", "Cinco y siete son doce.", True),
        ("How many pencils are there?", "Il reste 7 stylos.", True),
        ("Wie viele Stifte hat Mia?", "Das Feedback im Meeting war okay, also 7 Tickets.", False),
        ("Wie viele Stifte hat Mia?", "Es bleiben 7, and after that six more pencils get into the box, also 13.", True),
        (
            "Combien de crayons reste-t-il ?",
            "Le manager a fait un brainstorming et un briefing avec un chef.",
            False,
        ),
        ("¿Cuántos lápices quedan?", "El marketing del software online dio 7 clics en el blog.", False),
        ("¿Cuántos lápices quedan?", "Mia tiene 12, but then she gave five of them to Noah, y quedan 7.", True),
        ("How many vowels are in 'murciélago es un animal'?", "murciélago es un animal has 10 vowels.", False),
    ],
)
def test_short_prompts_kanji_and_sentences_of_the_prompt_are_understood(
    prompt: str, completion: str, switches: bool
) -> None:
    assert switches_language(prompt, completion) is switches


@pytest.mark.parametrize(
    "completion",
    [
        "<think>\n12减5等于7。\n</think>\n<answer>7</answer>",
        "<|begin_of_solution|>米娅还剩7支铅笔。<|end_of_solution|>",
        '<p class="result">还剩7支。</p>',
        "pencils = 12\npencils -= 5\nprint(pencils)\n还剩7支铅笔。",
        "def left(total):\n    return total - 5\n还剩7支铅笔。",
        "还剩7支铅笔。\n```python\npencils = 12 - 5  # cut off",
        "<｜Assistant｜>还剩7支铅笔。<｜end▁of▁sentence｜>",
        "还剩7支铅笔 ʕ•ᴥ•ʔ",
        "max(7, 5) = 7，min(7, 5) = 5，7 mod 5 = 2，det A = 7。",
    ],
)
def test_tags_code_and_functions_are_in_no_language(completion: str) -> None:
    assert switches_language("米娅有12支铅笔，给了诺亚5支，还剩几支？", completion) is False


def test_a_code_block_that_is_never_closed_hides_no_other_script() -> None:
    completion = "She had 12 pencils.\n```python\npencils = 12 - 5\n米娅还剩7支铅笔，因为她给了诺亚5支。"
    assert switches_language("Mia has 12 pencils and gives Noah 5. How many are left?", completion) is True


INSTRUCTION = "Please think step by step and write the final answer in a box."


@pytest.mark.parametrize(
    ("prompt", "completion", "switches"),
    [
        (f"Wie viele Stifte hat Mia? {INSTRUCTION}", "Mia hat noch sieben Stifte.", False),
        (f"Combien de crayons reste-t-il ? {INSTRUCTION}", "Il reste sept crayons dans la boîte.", False),
        (f"Combien de crayons reste-t-il ? {INSTRUCTION}", "There are seven pencils left.", False),
        (f"Combien de crayons reste-t-il ? {INSTRUCTION}", "Quedan siete lápices en la caja.", True),
        (f"Quantos lápis a Mia ainda tem? {INSTRUCTION}", "A Mia ainda tem sete lápis.", None),
        ("Translate to English: Die Stifte liegen auf dem Tisch.", "The pencils are on the table.", False),
    ],
)
def test_a_prompt_in_two_languages_may_be_answered_in_either(
    prompt: str, completion: str, switches: bool | None
) -> None:
    assert switches_language(prompt, completion) is switches


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (ENGLISH_PROMPT, "Mia heeft nog zeven potloden over."),
        (ENGLISH_PROMPT, "A menina ainda tem sete lápis na caixa."),
        (ENGLISH_PROMPT, "Nu har hon bara sju pennor kvar."),
        ("¿Cuántos lápices le quedan a Mia?", "Le restano sette matite perché ne ha date cinque."),
        ("Сколько карандашей осталось у Мии?", "У неї залишилося сім олівців, бо п'ять вона віддала Ною."),
        ("كم قلما بقي مع ميا؟", "میا کے پاس سات پنسلیں باقی ہیں۔"),
    ],
)
def test_a_completion_in_an_unknown_language_is_a_switch(prompt: str, completion: str) -> None:
    assert switches_language(prompt, completion) is True


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Hur många pennor har Mia kvar?", "Mia har sju pennor kvar."),
        ("Quantos lápis a Mia tem agora que deu cinco?", "A Mia tem sete lápis."),
        ("Hoeveel potloden heeft Mia nog over?", "Mia heeft nog zeven potloden over."),
        ("Hány ceruza maradt Miánál, miután ötöt odaadott?", "Miánál hét ceruza maradt."),
        ("Mia còn lại bao nhiêu cây bút chì?", "Mia còn lại bảy cây bút chì."),
    ],
)
def test_a_prompt_in_an_unknown_language_says_so_but_another_script_is_a_switch(prompt: str, completion: str) -> None:
    assert detect_language(prompt) is None
    assert switches_language(prompt, completion) is None
    assert switches_language(prompt, OTHER_SCRIPTS["ru"]) is True


def test_prompts_in_unknown_languages_are_counted_apart() -> None:
    prompts = [ENGLISH_PROMPT, ENGLISH_PROMPT, "Hur många pennor har Mia kvar?", "Hoeveel potloden heeft Mia nog over?"]
    completions = [ENGLISH, OTHER_SCRIPTS["el"], "Mia har sju pennor kvar.", "Mia heeft nog zeven potloden over."]
    assert language_switching_rate(prompts, completions) == 0.5
    assert unknown_language_rate(prompts, completions) == 0.5


WORKED = (
    "Mia has 12 pencils. She gives 5 of them to Noah, so she keeps 12 - 5 = 7 pencils. Then she buys 3 more at the "
    "market. So she has 7 + 3 = 10 pencils in the end, which is two fewer than before."
)


@pytest.mark.parametrize(
    "text",
    [
        "The total is 5+5+5+5+5+5+5+5+5+5+5+5 = 60.",
        r"We add $\frac16+\frac16+\frac16+\frac16+\frac16+\frac16 = 1$.",
        r"$2\cdot2\cdot2\cdot2\cdot2\cdot2\cdot2\cdot2$ is 256",
        "0.5 + 0.5 + 0.5 + 0.5 + 0.5 + 0.5 + 0.5 + 0.5 = 4",
        "n + n + n + n + n + n + n + n = 8n",
        "y^2 + y^2 + y^2 + y^2 + y^2 = 5y^2",
        "(2-1)+(2-1)+(2-1)+(2-1)+(2-1)+(2-1) = 6",
        "(t+2)(t+2)(t+2)(t+2)(t+2) is of degree 5",
        r"$\sqrt{3}+\sqrt{3}+\sqrt{3}+\sqrt{3}+\sqrt{3}$ is $5\sqrt{3}$",
        r"\sqrt{6+\sqrt{6+\sqrt{6+\sqrt{6+\sqrt{6+\cdots}}}}} = 3",
        "√7 + √7 + √7 + √7 + √7 = 5√7",
        r"\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{z}}}}} = 2",
        "g(g(g(g(g(g(x)))))) = 64x",
        "2^{2^{2^{2^{2}}}} is a tower of 5 twos",
        "3 and 3 and 3 and 3 and 3 and 3 and 3 make 21",
        "7本＋7本＋7本＋7本＋7本＝35本",
        "5 × 2,000,000,000,000 = 10,000,000,000,000",
        "*\n* *\n* * *\n* * * *\n* * * * *\n15 stars",
        "|y| + |y| + |y| + |y| + |y| = 5|y|",
        "4! + 4! + 4! + 4! + 4! = 120",
        "ln 3 + ln 3 + ln 3 + ln 3 + ln 3 = 5 ln 3",
        "20% + 20% + 20% + 20% + 20% = 100%",
        "4 Stifte + 4 Stifte + 4 Stifte + 4 Stifte + 4 Stifte",
        f"{'+'.join(['4'] * 50)} = 200",
        "The scores are 9, 9, 9, 9, 9, 9, 9, 9. Their mean is 9.",
        "🖍🖍🖍🖍🖍🖍🖍🖍🖍🖍🖍🖍🖍 = 13",
        f"Solution\n{'-' * 40}\nThe answer is 5.",
        f"Step 1 {'.' * 40} 3\nStep 2 {'.' * 40} 5",
        "+----+----+----+----+\n| 1 | 2 | 3 | 4 |\n+----+----+----+----+\n| 3 | 4 | 5 | 6 |\n+----+----+----+----+",
        f"{WORKED}\n\n**Final write-up**\n\n{WORKED}",
        r"\begin{array}{cccccccccccc} 1&2&3&4&5&6&7&8&9&10&11&12 \end{array} The answer is 12.",
        "The base64 of it is q83vEjRWeJq83vEjRWeJC0mNx7Ko2UfWzT5Qp1bYh8sLaRkE= and the answer is 5.",
        "The digest is 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08, so 5.",
        "Translate: water is вода, 水, น้ำ, νερό and ماء. That is 5 words.",
        "HHHH, HHHT, HHTH, HHTT, HTHH, HTHT, HTTH, HTTT: 8 outcomes",
        "Row 1: 1\nRow 2: 2\nRow 3: 3\nRow 4: 4\nRow 5: 5",
        "(C)",
        "The answer is B.",
        "Option D",
        "答案是三。",
        "三十二",
        "Twelve",
    ],
)
def test_sums_rules_tables_codes_and_short_answers_are_sound(text: str) -> None:
    assert degeneracy(text) == set()


@pytest.mark.parametrize(
    "end",
    ["9, 9, 9, 9, 9, 9, 9, 9", "9 - 4 9 - 4 9 - 4 9 - 4", "4 + 4 = 8, " * 4, "4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5, 6"],
)
def test_numbers_and_equations_that_are_repeated_to_the_end_are_a_loop(end: str) -> None:
    assert degeneracy(f"{WORKED} {end}") == {"loop"}


@pytest.mark.parametrize("digits", ["12", "571428"])
def test_digits_that_are_repeated_without_an_end_are_a_loop(digits: str) -> None:
    assert degeneracy("The quotient is 0." + (digits * 60)[:120]) == {"loop"}
    assert degeneracy("The quotient is 0." + digits * 4) == set()
    assert degeneracy("The quotient is 0." + digits * 4 + "...") == set()


@pytest.mark.parametrize("text", ["\u200b", "\u200b\u2060\ufeff", "\u00ad \u200e\n", "\u3000", "\ufe0f"])
def test_text_that_nobody_sees_is_empty(text: str) -> None:
    assert degeneracy(text) == {"empty"}


@pytest.mark.parametrize("unit", ["a", "!", "啊", "ha", "哈", "no", " ", "\n", "la "])
def test_one_character_syllable_or_white_space_is_a_loop_from_32_repeats_on(unit: str) -> None:
    assert "loop" in degeneracy("The answer is 7 x" + unit * 33)


@pytest.mark.parametrize(
    "line", ["Attempt {}: no.", "Try {}: it fails", "Wait, let me recount. Count {}.", "Case {} does not work,"]
)
def test_a_text_that_only_counts_on_is_a_loop(line: str) -> None:
    assert degeneracy("\n".join(line.format(count) for count in range(1, 20))) == {"loop"}
    assert degeneracy("\n".join(line.format(count) for count in range(1, 4))) == set()

"""Does `features` learn from texts in every script? ``python benchmarks/languages.py [--version 2]``.

Battles are made of 40 words, the same ones in every language, so that the battles of two languages are the same but for
how they are written. An answer wins the more often, the more often it has three of the words. The three are drawn anew
in every draw. The log loss is that of held-out battles; "best" is what one who knows the three words reaches.
``--version 2`` reads texts as before clusters of letters were cut.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import make_batch
from prefcli.models import features
from prefcli.models.features import statistics

ENGLISH = (
    "water house school child mother father book road city river mountain rice fish dog cat bird tree flower day night "
    "friend teacher doctor market money music language answer question work rain sun moon fire village car door letter "
    "color story"
)
CHINESE = (
    "水 房子 学校 孩子 母亲 父亲 书 道路 城市 河流 山 米饭 鱼 狗 猫 鸟 树木 花 日子 夜晚 "
    "朋友 老师 医生 市场 钱 音乐 语言 回答 问题 工作 雨 太阳 月亮 火 村庄 车 门 信 颜色 故事"
)
JAPANESE = (
    "水 家 学校 子供 母 父 本 道 都市 川 山 ご飯 魚 犬 ねこ 鳥 木 花 日 夜 "
    "友達 先生 医者 市場 お金 音楽 言葉 答え 質問 仕事 雨 太陽 月 火 村 くるま ドア 手紙 色 物語"
)
KOREAN = (
    "물 집 학교 아이 어머니 아버지 책 길 도시 강 산 밥 물고기 개 고양이 새 나무 꽃 날 밤 "
    "친구 선생님 의사 시장 돈 음악 언어 대답 질문 일 비 태양 달 불 마을 자동차 문 편지 색 이야기"
)
THAI = (
    "น้ำ บ้าน โรงเรียน เด็ก แม่ พ่อ หนังสือ ถนน เมือง แม่น้ำ ภูเขา ข้าว ปลา หมา แมว นก ต้นไม้ ดอกไม้ วัน กลางคืน "
    "เพื่อน ครู หมอ ตลาด เงิน ดนตรี ภาษา คำตอบ คำถาม งาน ฝน ดวงอาทิตย์ ดวงจันทร์ ไฟ หมู่บ้าน รถยนต์ ประตู จดหมาย สี นิทาน"
)
LAO = (
    "ນ້ຳ ເຮືອນ ໂຮງຮຽນ ເດັກ ແມ່ ພໍ່ ປຶ້ມ ຖະໜົນ ເມືອງ ແມ່ນ້ຳ ພູເຂົາ ເຂົ້າ ປາ ໝາ ແມວ ນົກ ຕົ້ນໄມ້ ດອກໄມ້ ວັນ ກາງຄືນ "
    "ເພື່ອນ ຄູ ທ່ານໝໍ ຕະຫຼາດ ເງິນ ດົນຕີ ພາສາ ຄຳຕອບ ຄຳຖາມ ວຽກ ຝົນ ດວງອາທິດ ດວງຈັນ ໄຟ ໝູ່ບ້ານ ລົດ ປະຕູ ຈົດໝາຍ ສີ ນິທານ"
)
KHMER = (
    "ទឹក ផ្ទះ សាលារៀន ក្មេង ម្តាយ ឪពុក សៀវភៅ ផ្លូវ ទីក្រុង ទន្លេ ភ្នំ បាយ ត្រី ឆ្កែ ឆ្មា បក្សី ដើមឈើ ផ្កា ថ្ងៃ យប់ "
    "មិត្តភក្តិ គ្រូ គ្រូពេទ្យ ផ្សារ លុយ តន្ត្រី ភាសា ចម្លើយ សំណួរ ការងារ ភ្លៀង ព្រះអាទិត្យ ព្រះចន្ទ ភ្លើង ភូមិ ឡាន ទ្វារ សំបុត្រ ពណ៌ រឿង"
)
BURMESE = (
    "ရေ အိမ် ကျောင်း ကလေး အမေ အဖေ စာအုပ် လမ်း မြို့ မြစ် တောင် ထမင်း ငါး ခွေး ကြောင် ငှက် သစ်ပင် ပန်း နေ့ ည "
    "သူငယ်ချင်း ဆရာ ဆရာဝန် ဈေး ပိုက်ဆံ ဂီတ ဘာသာစကား အဖြေ မေးခွန်း အလုပ် မိုး နေ လ မီး ရွာ ကား တံခါး စာ အရောင် ပုံပြင်"
)
HINDI = (
    "पानी घर विद्यालय बच्चा माता पिता किताब सड़क शहर नदी पहाड़ चावल मछली कुत्ता बिल्ली पक्षी पेड़ फूल दिन रात "
    "दोस्त शिक्षक डॉक्टर बाज़ार पैसा संगीत भाषा उत्तर प्रश्न काम बारिश सूरज चाँद आग गाँव गाड़ी दरवाज़ा चिट्ठी रंग कहानी"
)
ARABIC = (
    "ماء بيت مدرسة طفل أم أب كتاب طريق مدينة نهر جبل أرز سمك كلب قطة طائر شجرة زهرة يوم ليل "
    "صديق معلم طبيب سوق مال موسيقى لغة جواب سؤال عمل مطر شمس قمر نار قرية سيارة باب رسالة لون قصة"
)
LANGUAGES = {
    "English": (ENGLISH, " ", ". "), "Chinese": (CHINESE, "", "。"), "Japanese": (JAPANESE, "", "。"),
    "Korean": (KOREAN, " ", ". "), "Thai": (THAI, "", " "), "Lao": (LAO, "", " "), "Khmer": (KHMER, "", "។ "),
    "Burmese": (BURMESE, "", "။ "), "Hindi": (HINDI, " ", "। "), "Arabic": (ARABIC, " ", "، "),
}  # fmt: skip
"""The words, what is between two of them, and what ends a sentence."""

STRENGTH, TIES = 2.5, 0.7
"""Of the planted preference: by how much each of the three words changes the log odds, and how likely ties are."""


@dataclass(frozen=True)
class Votes:
    """Battles as numbers of words, and their outcomes; the same in every language."""

    texts: list[list[list[NDArray[np.int64]]]]
    """Of each battle the prompt, A and B, each a list of sentences."""
    labels: NDArray[np.int64]
    best: NDArray[np.float64]
    """Probabilities of A, B and tie that the outcomes were drawn from; shape ``[n, 3]``."""


def make_votes(battles: int, seed: int) -> Votes:
    """Random sentences, and outcomes by Davidson's model of how often the answers have three of the words."""
    random = np.random.default_rng(seed)
    vocabulary = len(ENGLISH.split())
    liked = random.permutation(vocabulary)[:3]

    def text(sentences: int) -> list[NDArray[np.int64]]:
        return [random.integers(vocabulary, size=random.integers(5, 10)) for _ in range(sentences)]

    texts = [[text(1), text(random.integers(1, 5)), text(random.integers(1, 5))] for _ in range(battles)]
    counts = np.array([[np.isin(np.concatenate(answer), liked).sum() for answer in battle[1:]] for battle in texts])
    scores = STRENGTH * counts
    odds = np.stack([scores[:, 0], scores[:, 1], scores.mean(axis=1) + np.log(TIES)], axis=1)
    best = metrics.softmax(odds)
    labels = (random.random((battles, 1)) > best.cumsum(axis=1)[:, :2]).sum(axis=1)
    return Votes(texts, labels, best)


def write(votes: Votes, language: str) -> pa.RecordBatch:
    """The battles in a language."""
    words, between, end = LANGUAGES[language]
    vocabulary = words.split()
    assert len(vocabulary) == len(ENGLISH.split()), language

    def written(sentences: list[NDArray[np.int64]]) -> list[str]:
        return ["".join(between.join(vocabulary[word] for word in sentence) + end for sentence in sentences)]

    turns = pa.list_(pa.string())
    columns = {
        name: pa.array([written(battle[place]) for battle in votes.texts], turns)
        for place, name in enumerate(("prompt", "response_a", "response_b"))
    }
    return make_batch({"id": pa.array([str(i) for i in range(len(votes.texts))]), **columns})


def held_out_loss(votes: Votes, language: str, test: int, version: int = statistics.VERSION) -> float:
    """Log loss on the last ``test`` battles of a model trained on the others."""
    battles = statistics.extract(write(votes, language), version)
    rows = np.arange(len(battles))
    inside, outside = rows[:-test], rows[-test:]
    targets = metrics.one_hot(votes.labels).astype(np.float32)
    model = features.fit(battles.take(inside), targets[inside], rows[inside], threads=1)
    return metrics.log_loss(model.probabilities(battles.take(outside)), votes.labels[outside])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--battles", type=int, default=6000, help="to train on")
    parser.add_argument("--test", type=int, default=3000, help="held out")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--version", type=int, default=statistics.VERSION, choices=statistics.VERSIONS)
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), choices=list(LANGUAGES))
    options = parser.parse_args()

    draws = [make_votes(options.battles + options.test, seed) for seed in range(options.draws)]
    held_out = [slice(-options.test, None)] * len(draws)
    best = [metrics.log_loss(votes.best[rows], votes.labels[rows]) for votes, rows in zip(draws, held_out, strict=True)]
    prior = [metrics.prior_log_loss(votes.labels[rows]) for votes, rows in zip(draws, held_out, strict=True)]
    print("| language | log loss, mean of the draws | each draw | s |\n|---|---|---|---|")
    print(f"| best | {np.mean(best):.4f} | {', '.join(f'{loss:.4f}' for loss in best)} | |")
    print(f"| prior | {np.mean(prior):.4f} | {', '.join(f'{loss:.4f}' for loss in prior)} | |", flush=True)
    for language in options.languages:
        started = time.perf_counter()
        losses = [held_out_loss(votes, language, options.test, options.version) for votes in draws]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"| {language} | {np.mean(losses):.4f} | {each} | {time.perf_counter() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Letters of languages and the legacy encodings they were written in, for `charset`.

Letters stand in falling order of frequency, lower case only, without ASCII. The words are the
commonest short ones of a language; words that neighbours share help neither and are left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Language(NamedTuple):
    """What speaks for a language: its letters, its encodings, its words.

    `plain` languages write most letters in ASCII, so only what is special about them is listed.
    """

    letters: str
    encodings: tuple[str, ...]
    words: frozenset[str] = frozenset()
    plain: bool = False


_WEST = ("cp1252", "mac_roman", "cp850")
_CENTRAL = ("cp1250", "iso8859_2", "cp852")
_BALTIC = ("cp1257",)
_CYRILLIC = ("cp1251", "koi8_u", "iso8859_5", "cp866", "mac_cyrillic", "cp855")


def _latin(letters: str, encodings: tuple[str, ...], words: str) -> Language:
    return Language(letters, encodings, frozenset(words.split()), True)


LANGUAGES: dict[str, Language] = {
    "English": _latin(
        "éèñüöáíóçâêïôäàëãåøæ",
        _WEST,
        "the of and to in is that for it with was on be are this by not",
    ),
    "German": _latin(
        "üäößéàè",
        _WEST,
        "der die und das ist nicht den mit von zu im ein eine für auf des dem sich werden wird",
    ),
    "French": _latin(
        "éèàêçâôîûùïëœ",
        _WEST,
        "le la les des et est un une du dans que qui pour pas sur au avec ce il sont par vous",
    ),
    "Spanish": _latin(
        "óíáéñúü¿¡",
        _WEST,
        "el la los las de que en un una por con para es se del como más su al lo",
    ),
    "Portuguese": _latin(
        "ãçéáíóêâõúàô",
        _WEST,
        "o os as de que em um uma por com para não se do da dos das no na ao mais é",
    ),
    "Italian": _latin(
        "èàùòéì",
        _WEST,
        "il la le di che un una per con non è del della dei sono si da nel anche più gli",
    ),
    "Swedish": _latin(
        "äåöé", _WEST, "och att det som en på är av för med den till inte ett om jag har de"
    ),
    "Danish": _latin(
        "åøæé", _WEST, "og at det som en på er af for med den til ikke et om jeg har de av"
    ),
    "Dutch": _latin(
        "ëéïèöü", _WEST, "de het een en van is dat niet op te zijn voor met die aan er ook"
    ),
    "Finnish": _latin("äöå", _WEST, "ja on ei että se hän oli joka mutta kun niin ovat tai"),
    "Icelandic": _latin("íáðóúéþöýæ", _WEST, "og að er sem í á það við ekki um til en var með"),
    "Polish": _latin(
        "łąężóśćńź",
        _CENTRAL,
        "w i na z do nie się jest to że od po jak za przez dla są lub oraz który",
    ),
    "Czech": _latin(
        "íáéěřčžýšůúňťóď",
        _CENTRAL,
        "a se v na je že s z do o k i ve to jsou jako pro který po jsem ale nebo",
    ),
    "Slovak": _latin(
        "áíéčýžšúôťľňóäďŕĺ",
        _CENTRAL,
        "a sa v na je že s z do o k aj vo to sú ako pre ktorý po som ale alebo",
    ),
    "Slovene": _latin("čšž", _CENTRAL, "in je v na se za da so ki z po ne pa s tudi bi ali kot iz"),
    "Croatian": _latin(
        "čšžćđ", _CENTRAL, "i je u na se za da su koji s od kao ne ili iz što bi o sam"
    ),
    "Hungarian": _latin(
        "áéóöőíüúű", _CENTRAL, "a az és hogy nem is egy ez de van meg volt el mint csak ki már vagy"
    ),
    "Romanian": _latin(
        "ăîâţşșț",
        (*_CENTRAL, "iso8859_16"),
        "de și în la a cu nu pe este din să un o care că mai pentru se si",
    ),
    "Turkish": _latin(
        "ıüşğçöâîi̇",
        ("cp1254",),
        "bir ve bu da de için ile olarak çok daha gibi ne var mi o olan ama",
    ),
    "Estonian": _latin(
        "äõüöšž", ("cp1257", "cp1252"), "ja on ei et see ta oli kui mis ka ning või"
    ),
    "Lithuanian": _latin("ėšųžąįčūę", _BALTIC, "ir yra į kad su iš tai ne kaip bet o jis buvo"),
    "Latvian": _latin("āīšēņļžūģķč", _BALTIC, "un ir ka no uz ar kas par tas bet vai es"),
    "Russian": Language("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё", _CYRILLIC),
    "Ukrainian": Language("оаниівтерслкдумпязьбгйчхцжїшюєщфґ", ("cp1251", "koi8_u")),
    "Bulgarian": Language("аеоинтрсвлкдпмзягбучщжцхшйъюфь", _CYRILLIC),
    "Serbian": Language("аиоенртсјвукдпмлзгбчшцжхћњђљфџѓќ", ("cp1251", "iso8859_5")),
    "Greek": Language("αοιετσνηυρπκμλςίγόδέάωήύθώχφβξζψϊΐϋ", ("cp1253", "iso8859_7")),
    "Hebrew": Language("יוהלאמרתבשנםעדקחפזטכסגןצךףץ", ("cp1255", "iso8859_8")),
    "Arabic": Language("اليمنروتبعهدسفحكقةجأشصخضطىإذثزءغئظؤآًَُِّْ،؟ـ", ("cp1256", "iso8859_6")),
    "Thai": Language("านรอกเง่ทวม้ลยสตดัิบป์คีขห็ไแุจพะชใโูำถซืผฟธณญฉศษฐภึฤๆ", ("cp874",)),
}

# Characters every language writes; what an encoding has beyond these and its letters is unlikely.
PUNCTUATION = "\u00a0–’“”«»—…•·‘°„©®§€£²±½´×№"

CHINESE_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年"
    "过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心"
    "她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间"
    "由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变"
    "四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社"
    "便空决治展马科司五基书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边"
    "请参数返回使用文件函数值应该例如路径数据库查询类型模型代码默认配置"
)
CHINESE_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年"
    "過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心"
    "她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間"
    "由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給"
    "世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變"
    "四神總何電數安少報才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社"
    "灣台灣香港網請您頁查詢服務資料"
)
JAPANESE = (
    "のにいるとたをはしがでてっなれらもすりかこさんまきくあうそけよどだえつちせめおろみやわねほじ"
    "ばひへべげむびぎごゃゅょずふぶンーイスルトラリアクシドレジタフロカムプテメグバデニコサマナキ"
    "チッュョウエオケソツヌノハホミモヤユヨワヲガギゴザズダパピポベボェィォャ、。・「」"
    "日本人大年中会国一者上事出分間時行生的見自物場合前手今内新学方高月名私入代社部動地同用思力"
)
KOREAN = (
    "이다는을의에가고하지로사한기서도은를인어자아시대리나정과그일해수있보부제라것장들원전상주스"
    "만구여니면니까동안지게세우오생공진유신성조연국경문화방소요용무적발관계비음실선개드관습트마"
    "모든터위미당내으되저할했었였됩입니합중와영반"
)

"""Word lists from which prompts outside the tasks are built."""

from typing import Final

NOUNS: Final = (
    "house", "river", "mountain", "computer", "window", "teacher", "doctor", "lawyer", "kitchen", "engine", "piano",
    "guitar", "forest", "ocean", "island", "bridge", "castle", "planet", "star", "galaxy", "theory", "language",
    "history", "science", "music", "painting", "poem", "novel", "story", "film", "actor", "singer", "coffee", "bread",
    "cheese", "dragon", "wizard", "robot", "virus", "bacteria", "cell", "atom", "molecule", "protein", "muscle",
    "heart", "brain", "lung", "bone", "skin", "weather", "storm", "snow", "rain", "wind", "cloud", "sun", "moon",
    "market", "bank", "money", "tax", "law", "court", "police", "army", "war", "peace", "king", "queen", "president",
    "vote", "party", "school", "university", "exam", "student", "library", "dictionary", "grammar", "alphabet",
    "letter", "sentence", "paragraph", "essay", "article", "newspaper", "magazine", "website", "server", "database",
    "network", "keyboard", "screen", "phone", "camera", "battery", "car", "train", "plane", "ship", "bicycle", "road",
    "street", "city", "village", "country", "border", "passport", "hotel", "ticket", "holiday", "beach", "desert",
    "jungle", "lion", "tiger", "elephant", "dog", "cat", "horse", "bird", "snake", "spider", "insect", "flower",
    "tree", "grass", "seed", "fruit", "vegetable", "soup", "salad", "dinner", "breakfast", "lunch", "recipe", "sugar",
    "salt", "pepper", "oil", "water", "fire", "metal", "gold", "silver", "iron", "glass", "plastic", "paper", "wood",
    "stone", "clock", "calendar", "birthday", "wedding", "family", "mother", "father", "sister", "brother", "friend",
    "neighbour", "job", "salary", "boss", "office", "meeting", "project", "plan", "idea", "problem",
)  # fmt: skip
VERBS: Final = (
    "write", "read", "translate", "explain", "describe", "summarise", "draw", "paint", "sing", "cook", "bake", "build",
    "repair", "clean", "open", "close", "find", "lose", "buy", "sell", "rent", "visit", "call", "send", "receive",
    "print", "delete", "copy", "install", "configure", "compile", "debug", "deploy", "test", "measure", "mix", "plant",
    "grow", "catch", "hunt", "ride", "drive", "fly", "swim", "climb", "run", "walk", "dance", "play", "win", "teach",
    "learn", "study", "remember", "forget", "imagine", "design", "invent", "discover", "protect", "destroy", "hide",
    "show", "watch", "hear", "smell", "taste", "touch", "wash", "dry", "cut", "fold", "throw", "carry", "lift",
)  # fmt: skip
ADJECTIVES: Final = (
    "old", "new", "big", "small", "fast", "slow", "red", "blue", "green", "black", "white", "bright", "dark", "warm",
    "cold", "hot", "dry", "wet", "happy", "sad", "angry", "tired", "hungry", "rich", "poor", "famous", "strange",
    "simple", "complex", "modern", "ancient", "digital", "medical", "legal", "political", "social", "natural",
    "artificial", "electric", "organic", "quiet", "loud", "heavy", "light", "soft", "hard", "sharp", "round", "flat",
    "deep", "shallow", "empty", "full", "sweet", "bitter", "sour", "fresh",
)  # fmt: skip
PROPER: Final = (
    "France", "Germany", "Japan", "Brazil", "Egypt", "India", "Canada", "Mexico", "Italy", "Spain", "Norway", "Kenya",
    "China", "Russia", "Peru", "Chile", "Paris", "London", "Berlin", "Tokyo", "Rome", "Madrid", "Cairo", "Oslo",
    "Shakespeare", "Einstein", "Newton", "Mozart", "Picasso", "Napoleon", "Cleopatra", "Darwin", "Goethe", "Python",
    "Java", "Linux", "Windows", "Google", "Amazon", "Wikipedia", "Mars", "Jupiter", "Saturn", "Europe", "Africa",
    "Asia", "Christmas", "Easter", "Ramadan",
)  # fmt: skip
PEOPLE: Final = (
    "I", "you", "we", "they", "he", "she", "everybody", "nobody", "somebody", "my mother", "our teacher",
    "the president",
)  # fmt: skip
TOPICS: Final = (
    "climate change", "the stock market", "quantum physics", "the French revolution", "machine learning",
    "black holes", "healthy food", "world peace", "the meaning of life", "dinosaurs", "the Roman empire",
    "photosynthesis", "electric cars", "social media", "football", "chess", "yoga", "gardening", "the human body",
    "evolution", "space travel", "ancient Greece", "the weather", "cryptocurrency", "philosophy", "jazz", "opera",
)  # fmt: skip
FOREIGN: Final = (
    "der die das und ist nicht ein eine Haus Wetter heute morgen warum wie geht es dir Hauptstadt schreiben bitte "
    "Gedicht",
    "le la les est une que qui pourquoi comment maison temps aujourd'hui demain bonjour capitale écrire poème fenêtre",
    "el los una que por qué cómo casa tiempo hoy mañana hola capital escribir poema ventana niño corazón está muy",
    "il lo una che perché come casa tempo oggi domani ciao capitale scrivere poesia finestra cuore città però",
    "o os uma que porque como casa tempo hoje amanhã olá capital escrever poema janela coração não está muito",
    "de het een wat waarom hoe huis weer vandaag morgen hallo hoofdstad schrijven gedicht raam hart stad niet",
    "jest nie dlaczego jak dom pogoda dzisiaj jutro cześć stolica napisać wiersz okno serce miasto życie źródło",
    "bir bu ne neden nasıl ev hava bugün yarın merhaba başkent yazmak şiir pencere kalp şehir değil çok güzel",
    "это не почему как дом погода сегодня завтра привет столица написать стихи окно сердце город очень что где",
    "είναι δεν γιατί πώς σπίτι καιρός σήμερα αύριο γεια πρωτεύουσα ποίημα παράθυρο καρδιά πόλη πολύ",
    "今天 天气 怎么样 你好 请 写 一首 诗 关于 春天 为什么 中国 首都 是 哪里 我 喜欢 学习 历史 音乐",
    "今日 天気 は どう です か こんにちは 詩 を 書いて ください なぜ 日本 首都 好き 歴史 音楽 勉強",
    "오늘 날씨 어때요 안녕하세요 시 써 주세요 왜 한국 수도 어디 좋아해요 역사 음악 공부 친구",
    "ما هو الطقس اليوم مرحبا اكتب قصيدة لماذا عاصمة مصر أين أحب التاريخ الموسيقى كيف حالك",
    "आज मौसम कैसा है नमस्ते कविता लिखो क्यों भारत राजधानी कहाँ इतिहास संगीत पसंद मुझे",
    "היום מזג אוויר שלום מה למה איך בית עיר שיר לכתוב חלון לב בירה",
    "vad är inte varför hur hus väder idag hej huvudstad skriva dikt fönster hjärta och jag kan",
    "co je proč jak dům počasí dnes zítra ahoj hlavní město báseň okno srdce není děkuji",
)  # fmt: skip
"""Words of one language each; a prompt takes some of them in any order."""
EMOJI: Final = (
    "😀", "😂", "🎉", "❤️", "👍", "🚀", "🔥", "🐱", "🌍", "🍕", "🤖", "✨", "😭", "🙏", "💡", "🎵", "🏠", "⚽",
    "🌈", "👩\u200d🚀", "🇫🇷", "♻️", "☃️", "✅",
)  # fmt: skip
NUMBER_WORDS: Final = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "ninety", "hundred",
)  # fmt: skip
UNITS: Final = (
    "km", "miles", "kg", "pounds", "litres", "degrees", "hours", "minutes", "seconds", "metres", "inches", "dollars",
    "percent", "grams", "weeks",
)  # fmt: skip

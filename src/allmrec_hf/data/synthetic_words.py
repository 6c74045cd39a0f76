"""The words of the invented film world, each in one list only."""

from __future__ import annotations

GENERIC_ADJECTIVES = (
    *("Last", "First", "Little", "Great", "Hidden", "Secret"),
    *("Broken", "Golden", "Dark", "Endless", "Forgotten", "Midnight"),
)
GENERIC_NOUNS = (
    *("Night", "Day", "Road", "House", "Story", "Summer"),
    *("Winter", "Heart", "Shadow", "Dream", "River", "City"),
)

PROMPT_WORDS = (
    *('"', ",", ".", "is", "a", "user", "representation", "This", "has", "in", "the", "previous", "Recommend"),
    *("one", "next", "for", "this", "to", "from", "following", "title", "set", "recommendation"),
    *("watched", "watch", "movie", "played", "play", "game", "bought", "buy", "item"),
)
SENTENCE_WORDS = ("film", "about", "and", "an")

_Topic = tuple[str, tuple[str, ...], tuple[str, ...]]


def _topic(name: str, adjectives: str, nouns: str) -> _Topic:
    return name, tuple(adjectives.split()), tuple(nouns.split())


def _genre(name: str, adjectives: str, *topics: _Topic) -> tuple[str, tuple[str, ...], tuple[_Topic, ...]]:
    return name, tuple(adjectives.split()), topics


GENRES = (
    _genre(
        "Western",
        "Dusty Lonesome Rugged",
        _topic("Outlaws", "Wanted Masked Reckless", "Bandit Sheriff Revolver Bounty Saloon"),
        _topic("Ranchers", "Branded Galloping Parched", "Cattle Mustang Lasso Corral Saddle"),
    ),
    _genre(
        "Horror",
        "Dreadful Sinister Ghastly",
        _topic("Ghosts", "Haunted Spectral Wailing", "Phantom Manor Seance Crypt Lantern"),
        _topic("Vampires", "Crimson Undying Nocturnal", "Coffin Fang Count Bat Castle"),
    ),
    _genre(
        "Space",
        "Cosmic Orbital Stellar",
        _topic("Robots", "Chrome Mechanical Programmed", "Android Circuit Machine Factory Signal"),
        _topic("Aliens", "Tentacled Luminous Distant", "Saucer Planet Invader Crater Comet"),
    ),
    _genre(
        "Crime",
        "Shady Crooked Ruthless",
        _topic("Heists", "Stolen Daring Locked", "Vault Diamond Getaway Safe Thief"),
        _topic("Gangsters", "Silken Bribed Smoky", "Mobster Cigar Casino Syndicate Boss"),
    ),
    _genre(
        "Romance",
        "Tender Wistful Passionate",
        _topic("Weddings", "Blushing Veiled Promised", "Bride Bouquet Altar Groom Chapel"),
        _topic("Letters", "Perfumed Unsent Handwritten", "Envelope Postman Confession Stamp Ink"),
    ),
    _genre(
        "Comedy",
        "Silly Awkward Absurd",
        _topic("Roommates", "Messy Noisy Unpaid", "Sofa Landlord Apartment Pizza Neighbor"),
        _topic("Clowns", "Painted Juggling Giggling", "Circus Balloon Unicycle Jester Trapeze"),
    ),
    _genre(
        "War",
        "Brave Bitter Fallen",
        _topic("Submarines", "Sunken Submerged Silent", "Torpedo Periscope Captain Depth Sonar"),
        _topic("Trenches", "Muddy Barbed Shelled", "Bunker Rifle Soldier Barricade Grenade"),
    ),
    _genre(
        "Fantasy",
        "Enchanted Mythic Arcane",
        _topic("Dragons", "Scaled Fiery Winged", "Hoard Wyrm Knight Lair Flame"),
        _topic("Wizards", "Bearded Runic Hooded", "Staff Potion Spell Tower Cauldron"),
    ),
    _genre(
        "Sports",
        "Athletic Sweaty Triumphant",
        _topic("Boxing", "Bruised Gloved Heavyweight", "Ring Punch Knockout Trainer Bell"),
        _topic("Racing", "Turbo Roaring Speeding", "Engine Track Helmet Piston Lap"),
    ),
    _genre(
        "Mystery",
        "Cryptic Puzzling Uncanny",
        _topic("Detectives", "Observant Sleuthing Deductive", "Clue Inspector Alibi Magnifier Suspect"),
        _topic("Spies", "Coded Undercover Double", "Agent Cipher Dossier Embassy Microfilm"),
    ),
    _genre(
        "Music",
        "Melodic Rhythmic Harmonic",
        _topic("Jazz", "Brassy Syncopated Bluesy", "Trumpet Saxophone Nightclub Quartet Swing"),
        _topic("Rock", "Electric Amplified Rebellious", "Guitar Drummer Encore Stadium Riff"),
    ),
    _genre(
        "Nature",
        "Wild Verdant Untamed",
        _topic("Jungles", "Tropical Tangled Humid", "Vine Jaguar Canopy Parrot Orchid"),
        _topic("Glaciers", "Frozen Icy Polar", "Iceberg Penguin Sled Blizzard Igloo"),
    ),
    _genre(
        "Adventure",
        "Bold Perilous Uncharted",
        _topic("Pirates", "Buried Plundered Salty", "Treasure Galleon Cutlass Anchor Corsair"),
        _topic("Deserts", "Sandy Scorched Nomadic", "Oasis Camel Dune Caravan Mirage"),
    ),
    _genre(
        "History",
        "Ancient Imperial Noble",
        _topic("Romans", "Marble Laurelled Legionary", "Gladiator Senator Colosseum Chariot Emperor"),
        _topic("Pharaohs", "Gilded Embalmed Sacred", "Pyramid Sphinx Scarab Papyrus Obelisk"),
    ),
    _genre(
        "Drama",
        "Sorrowful Estranged Quiet",
        _topic("Courtrooms", "Guilty Sworn Accused", "Verdict Judge Jury Witness Lawyer"),
        _topic("Hospitals", "Feverish Wounded Sterile", "Surgeon Nurse Ward Scalpel Ambulance"),
    ),
    _genre(
        "Family",
        "Gentle Playful Merry",
        _topic("Puppies", "Loyal Fluffy Barking", "Terrier Bone Kennel Leash Collar"),
        _topic("Schools", "Chalky Graded Homesick", "Classroom Teacher Recess Locker Textbook"),
    ),
)

"""``python -m prefcli.text``: the table in ``assets/character-classes.txt``, from this Python's Unicode database."""

from prefcli.text import character_class_table

if __name__ == "__main__":
    print(character_class_table(), end="")

// Battles to try, written for this page.

export const EXAMPLES = [
  {
    name: "A child's question",
    prompts: ["My six-year-old asks why the sky is blue. What do I say?"],
    answers: [
      [
        "Sunlight looks white, but all the colours of the rainbow are mixed in it. Air bounces the blue around much " +
          "more than the red, so blue comes to your eyes from wherever you look. In the evening the light has a long " +
          "way through the air: the blue gets lost on it, and red is left.",
      ],
      [
        "The phenomenon is due to Rayleigh scattering, whose cross-section is inversely proportional to the fourth " +
          "power of the wavelength.",
      ],
    ],
  },
  {
    name: "A letter (German)",
    prompts: ["Schreib meiner Vermieterin freundlich, dass die Heizung seit Montag kalt ist."],
    answers: [
      [
        "Liebe Frau Winter,\n\nseit Montag wird die Heizung in meiner Wohnung nicht mehr warm, auch nicht nach dem " +
          "Entlüften. Könnten Sie bitte diese Woche jemanden vorbeischicken? Ich bin ab 16 Uhr zu Hause.\n\n" +
          "Herzliche Grüße\nAnna Sommer",
      ],
      ["Die Heizung ist kaputt. Bitte reparieren."],
    ],
  },
  {
    name: "A proverb (Japanese)",
    prompts: ["「猫の手も借りたい」とはどういう意味ですか。"],
    answers: [
      ["猫の前足を借りるという意味です。"],
      [
        "とても忙しくて、誰でもいいから手伝ってほしいという意味です。\n\n" +
          "例:「年末は注文が多くて、猫の手も借りたいほどだ。」",
      ],
    ],
  },
  {
    name: "Three names (Spanish)",
    prompts: ["Propón un nombre para una cafetería donde viven gatos."],
    answers: [
      ["**Café Bigotes**: corto, fácil de recordar, y se entiende enseguida quién manda allí."],
      ["Cafetería."],
      ["Algunas ideas:\n\n1. Siete Vidas\n2. El Ronroneo\n3. Miau con Leche\n\nMi favorita es *Siete Vidas*."],
    ],
  },
  {
    name: "Two turns (Arabic)",
    prompts: ["ما عاصمة أستراليا؟", "هل أنت متأكد؟"],
    answers: [
      ["عاصمة أستراليا هي كانبرا.", "نعم. كثيرون يظنون أنها سيدني لأنها أكبر المدن، لكن البرلمان في كانبرا."],
      ["سيدني.", "نعم، سيدني."],
    ],
  },
  {
    name: "Markup in the answers",
    prompts: ["How do I put a picture on my web page?"],
    answers: [
      [
        'Use the element `img`:\n\n```html\n<img src="cat.jpg" alt="A cat asleep on a chair">\n```\n\n' +
          "`alt` is read aloud to people who cannot see the picture.",
      ],
      [
        "<h1>Just paste this!</h1>\n<img src=x onerror=\"document.title = 'It ran'\">\n" +
          "<script>document.title = 'It ran'</script>",
      ],
    ],
  },
];

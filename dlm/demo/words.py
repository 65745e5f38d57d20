"""The vocabulary of the demo tasks, and some similar English text to train the tokenizer on."""

from __future__ import annotations

ITEMS = ("apples", "books", "cards", "coins", "eggs", "keys", "nuts", "pens", "plums", "shells", "stamps", "toys")

CATEGORIES = {
    "colour": ("red", "blue", "green", "black", "white", "pink", "brown", "grey"),
    "animal": ("dog", "cat", "cow", "fox", "hen", "owl", "pig", "bear", "goat", "lion", "duck", "frog"),
    "metal": ("iron", "gold", "tin", "lead", "zinc", "silver", "copper"),
    "tool": ("saw", "drill", "file", "axe", "spade", "rake", "plane"),
    "drink": ("tea", "milk", "water", "juice", "cider", "cocoa"),
    "fruit": ("apple", "pear", "plum", "fig", "lemon", "grape", "mango", "lime", "melon", "peach"),
}

NOUNS = (
    *("dog", "cat", "fox", "owl", "bear", "boat", "cup", "map", "hat", "lamp", "door", "tree", "bird", "box", "ring"),
    *("stone", "road", "bell", "cake", "drum", "flag", "leaf", "moon", "rope", "sun", "tent", "wall", "fish", "coat"),
)

CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Iran": "Tehran",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Nepal": "Kathmandu",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "Iraq": "Baghdad",
    "Syria": "Damascus",
    "Qatar": "Doha",
    "Mali": "Bamako",
    "Laos": "Vientiane",
    "Fiji": "Suva",
    "Libya": "Tripoli",
    "Serbia": "Belgrade",
    "Latvia": "Riga",
    "Zambia": "Lusaka",
}

ENGLISH = """
A farmer sells 16 eggs every day at the market for $2 each. How much money does she make in a week? She makes 16 * 2
= 32 dollars a day, so in 7 days she makes 32 * 7 = 224 dollars. The answer is 224. There are 3 boxes in the room,
and each box holds 12 pencils. If 5 pencils are lost, how many pencils are left? There are 3 * 12 = 36 pencils in
total. After 5 are lost, 36 - 5 = 31 pencils remain. The answer is 31. Maria read half of a book with 240 pages on
Monday and 30 more pages on Tuesday. How many pages must she still read? On Monday she read 240 / 2 = 120 pages. By
Tuesday she had read 120 + 30 = 150 pages, so 240 - 150 = 90 pages remain. A train leaves at 9 o'clock and travels
60 miles per hour for 4 hours. What is the total distance? The distance is the speed times the time, which is 60 * 4
= 240 miles. If the price of a shirt is $25 and the shop takes 20% off, what does the customer pay? The discount is
25 * 0.20 = $5, so the customer pays 25 - 5 = $20. His sister is twice as old as he is. In 6 years she will be 24
years old. How old is he now? She is 24 - 6 = 18 now, and so he is 18 / 2 = 9 years old. They worked for 8 hours
each day from Monday to Friday, and earned $15 an hour. How much did each of them earn? Each of them worked 8 * 5 =
40 hours and earned 40 * 15 = $600. First, we should find the number of students in each class. Then we add them
together, because the question asks for the whole school. Finally, we divide by the number of teachers. Write a
function that returns the sum of a list of numbers. The function should return zero when the list is empty.
def total(numbers):
    result = 0
    for number in numbers:
        result = result + number
    return result
Please explain your reasoning step by step, and then give the final answer. You are a helpful assistant. The weather
was cold, but the children wanted to play outside before dinner. Their mother said that they could go if they would
wear their coats, and they were back in less than an hour. What would you have done? I think that is a very good
question, and there is more than one way to answer it. It is not always true that people who have more time do more
work. When the water in the pot is hot enough, put in the rice, cover it, and wait for about ten minutes. Some
people like to add a little salt or butter. After that, take it off the heat and let it rest, so that it does not
stick together.
"""

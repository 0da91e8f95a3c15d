package console

// Part is what the pages are made of.
var Part = part

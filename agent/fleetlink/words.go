package fleetlink

import (
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/cosmos/go-bip39"
)

const (
	wordCount   = 3
	wordLetters = 10 // fewer in all, and the fleet takes them for something else
)

// drawWords draws three words of a list of 2,048, that is 33 bits, with dashes
// between them. They are what the fleet calls claim_words.
func drawWords() (string, error) {
	for {
		entropy := make([]byte, 16)
		if _, err := rand.Read(entropy); err != nil {
			return "", fmt.Errorf("draw words: %w", err)
		}
		// Of a phrase of twelve, the words before the last are the random bits alone.
		phrase, err := bip39.NewMnemonic(entropy)
		if err != nil {
			return "", fmt.Errorf("draw words: %w", err)
		}
		words := strings.Join(strings.Fields(phrase)[:wordCount], "-")
		if goodWords(words) {
			return words, nil
		}
	}
}

// goodWords reports whether words have the form that the fleet knows them by.
func goodWords(words string) bool {
	parts := strings.Split(words, "-")
	letters := 0
	for _, part := range parts {
		if len(part) < 3 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz") != "" {
			return false
		}
		letters += len(part)
	}
	return len(parts) == wordCount && letters >= wordLetters
}

// Gauge is planted into the root of test images: it does fixed pieces of work, so that
// what the emulator makes of them can be compared with a real processor.
//
//	gauge            GET /words, /hash and /calls on port 9998 do one piece each
//	gauge KIND       does one piece and prints the seconds of processor time it took
package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pieces are what a program of the box spends its time on, each by itself.
var pieces = map[string]func() error{"words": words, "hash": hash, "calls": calls}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(os.Args) == 2 {
		took, err := do(os.Args[1])
		if err == nil {
			_, err = fmt.Fprintln(os.Stdout, took.Seconds())
		}
		if err != nil {
			log.Error("piece of work not done", "error", err)
			os.Exit(1)
		}
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{kind}", func(w http.ResponseWriter, r *http.Request) {
		took, err := do(r.PathValue("kind"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintln(w, took.Seconds()) // who asked may be gone
	})
	log.Error("gauge ended", "error", http.ListenAndServe(":9998", mux))
	os.Exit(1)
}

// do returns the processor time that a piece took, as this machine counts it.
func do(kind string) (time.Duration, error) {
	piece, ok := pieces[kind]
	if !ok {
		return 0, fmt.Errorf("there is no piece of work %q", kind)
	}
	before, err := worked()
	if err != nil {
		return 0, err
	}
	if err := piece(); err != nil {
		return 0, err
	}
	after, err := worked()
	return after - before, err
}

func worked() (time.Duration, error) {
	var use unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &use)
	return time.Duration(use.Utime.Nano() + use.Stime.Nano()), err
}

// words is what Go programs mostly do: small objects, text, maps, comparisons.
func words() error {
	type record struct {
		Name  string
		Size  int
		Parts map[string]float64
	}
	var list []record
	for i := range 1000 {
		list = append(list, record{"lease " + strconv.Itoa(i*7919%1000), i, map[string]float64{"cpu": 0.5 * float64(i), "memory": 1 / float64(i+1)}})
	}
	for range 100 {
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		list = nil
		if err := json.Unmarshal(text, &list); err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b record) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.Size-b.Size) })
		slices.Reverse(list)
	}
	return nil
}

// hash is where a real processor has instructions that the emulator has not.
func hash() error {
	block, h := make([]byte, 1<<20), sha256.New()
	for range 256 {
		h.Write(block)
	}
	h.Sum(nil)
	return nil
}

// calls is work of the kernel.
func calls() error {
	for range 20000 {
		if _, err := os.ReadFile("/proc/self/stat"); err != nil {
			return err
		}
	}
	return nil
}

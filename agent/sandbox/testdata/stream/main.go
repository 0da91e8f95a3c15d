// Stream answers every request on port 3000 with as many MiB as ?mib= says.
package main

import (
	"log"
	"net/http"
	"strconv"
)

func main() {
	block := make([]byte, 1<<20)
	log.Fatal(http.ListenAndServe(":3000", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("mib"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for range n {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})))
}

package ai.solrt

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** Options in one expression: `generateOptions { budget(0.6).maxNewTokens(200) }`. */
inline fun generateOptions(set: GenerateOptions.Builder.() -> Unit): GenerateOptions = GenerateOptions.builder().apply(set).build()

/**
 * The tokens of one generation. It begins anew with every collector and computes in [Dispatchers.Default]. A token is computed when the collector is done
 * with the one before, so that [SolSession.setBudget] acts on the next one; `buffer()` lets it run ahead. Cancelling the collector ends the generation
 * within one decode step, and so does an exception in it; the collector's own call of [SolSession.rewind], [SolSession.save], [SolSession.restore] or
 * [SolSession.stop] ends the flow, too. The flow fails with a [SolException]; [SolSession.result] has the figures afterwards.
 */
fun SolSession.generateFlow(prompt: IntArray, options: GenerateOptions): Flow<SolToken> = flow {
    val session = this@generateFlow
    var generation = 0 // the number of this one, as soon as it has begun
    try {
        withContext(Dispatchers.Default) {
            generation = session.begin(prompt, options)
        }
        do {
            val token = session.nextOrCancel(generation) ?: break
            emit(token)
        } while (!token.isLast)
    } catch (cancelled: SolException.Cancelled) {
        currentCoroutineContext().ensureActive() // where the collector was cancelled, that is what the flow ends with
        throw cancelled
    } finally {
        try {
            if (generation != 0) session.stopOf(generation) // also forgets a cancel that came too late for the last step
        } catch (_: SolException) {
        }
    }
}

/** The next token of a generation, in another thread; null if it is over. Cancelling this coroutine cancels the step, and waits for its end. */
private suspend fun SolSession.nextOrCancel(generation: Int): SolToken? = coroutineScope {
    var over = false
    // Unconfined: no thread must be free for it.
    val watcher = launch(Dispatchers.Unconfined) {
        try {
            awaitCancellation()
        } finally {
            if (!over) this@nextOrCancel.cancel()
        }
    }
    try {
        withContext(Dispatchers.Default) { nextOf(generation) }
    } finally {
        over = true
        watcher.cancel()
    }
}
